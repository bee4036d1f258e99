"""Networks of well-known libraries, by name: random weights, small configurations, or shapes alone."""

import torch
from torch import nn


def torchvision(name, package="", **params):
    def make():
        from torchvision import models

        place = getattr(models, package) if package else models
        with torch.device("meta"):
            return getattr(place, name)(weights=None, **params)

    return make


def timm(name, **params):
    def make():
        import timm

        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, **params)

    return make


TINY = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50}
SIZES = {
    "Bert": TINY | {"num_hidden_layers": 3},
    "DistilBert": {"dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 3, "vocab_size": 50},
    "GPT2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 50, "n_positions": 8},
    "T5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50},
    "Llama": TINY | {"num_hidden_layers": 3, "num_key_value_heads": 2},
    "ViT": TINY | {"num_hidden_layers": 2, "image_size": 32, "patch_size": 16},
    "Roberta": TINY | {"num_hidden_layers": 2},
    "XLMRoberta": TINY | {"num_hidden_layers": 2},
    "DebertaV2": TINY | {"num_hidden_layers": 2},
    "Electra": TINY | {"num_hidden_layers": 2, "embedding_size": 16},
}


def transformers(family, task="Model", **params):
    def make():
        import transformers

        for name in ("num_labels",):
            params.setdefault(name, 3)
        config = getattr(transformers, f"{family}Config")(pad_token_id=0, **SIZES[family], **params)
        return getattr(transformers, f"{family}{task}")(config)

    return make


def sentence_transformer():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    class Encoder(nn.Module):
        """What `Transformer` of sentence-transformers is: it wraps a model of transformers."""

        def __init__(self):
            super().__init__()
            self.auto_model = transformers("Bert")()

        def forward(self, features):
            return features | {"token_embeddings": self.auto_model(**features).last_hidden_state}

    return SentenceTransformer(modules=[Encoder(), modules.Pooling(16), modules.Dense(16, 8)], device="cpu")


def lora():
    from peft import LoraConfig, get_peft_model

    base = transformers("Bert", "ForSequenceClassification")()
    return get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))


def braindecode(name):
    def make():
        from braindecode import models

        return getattr(models, name)(n_chans=4, n_outputs=3, n_times=200)

    return make


def dann():
    from skada.deep import DANN
    from skada.deep.modules import ToyCNN

    base = ToyCNN(n_channels=1, input_size=100, n_classes=3, kernel_size=5)
    return DANN(base, layer_name="feature_extractor", num_features=base.num_features).initialize().module_


class LSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True)
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(self.lstm(self.embedding(x))[0][:, -1])


class DoubleConv(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, padding=1),
            nn.BatchNorm2d(n_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(n_out, n_out, 3, padding=1),
            nn.BatchNorm2d(n_out),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        return self.double_conv(x)


class Down(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(n_in, n_out))

    def forward(self, x):
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.up = nn.ConvTranspose2d(n_in, n_in // 2, kernel_size=2, stride=2)
        self.conv = DoubleConv(n_in, n_out)

    def forward(self, x, skipped):
        return self.conv(torch.cat([skipped, self.up(x)], 1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inc = DoubleConv(3, 4)
        self.down1, self.down2 = Down(4, 8), Down(8, 16)
        self.up1, self.up2 = Up(16, 8), Up(8, 4)
        self.outc = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        one = self.inc(x)
        two = self.down1(one)
        return self.outc(self.up2(self.up1(self.down2(two), two), one))


NO_WEIGHTS = {"weights_backbone": None}
NETWORKS = {
    "torchvision resnet50": torchvision("resnet50"),
    "torchvision densenet121": torchvision("densenet121"),
    "torchvision googlenet": torchvision("googlenet", aux_logits=False, init_weights=False),
    "torchvision inception_v3": torchvision("inception_v3", aux_logits=False, init_weights=False),
    "torchvision convnext_tiny": torchvision("convnext_tiny"),
    "torchvision mobilenet_v3_small": torchvision("mobilenet_v3_small"),
    "torchvision efficientnet_b0": torchvision("efficientnet_b0"),
    "torchvision vgg16": torchvision("vgg16"),
    "torchvision swin_t": torchvision("swin_t"),
    "torchvision vit_b_16": torchvision("vit_b_16"),
    "torchvision deeplabv3_resnet50": torchvision("deeplabv3_resnet50", "segmentation", aux_loss=True, **NO_WEIGHTS),
    "torchvision ssdlite320": torchvision("ssdlite320_mobilenet_v3_large", "detection", **NO_WEIGHTS),
    "torchvision fasterrcnn_resnet50_fpn": torchvision("fasterrcnn_resnet50_fpn", "detection", **NO_WEIGHTS),
    "torchvision retinanet_resnet50_fpn": torchvision("retinanet_resnet50_fpn", "detection", **NO_WEIGHTS),
    "timm resnet18": timm("resnet18"),
    "timm vit_tiny": timm("vit_tiny_patch16_224"),
    "timm deit_tiny_distilled": timm("deit_tiny_distilled_patch16_224"),
    "timm convnext_tiny": timm("convnext_tiny"),
    "timm swin_tiny": timm("swin_tiny_patch4_window7_224"),
    "timm efficientnet_b0": timm("efficientnet_b0"),
    "timm xcit_nano": timm("xcit_nano_12_p16_224"),
    "timm vit_small_r26": timm("vit_small_r26_s32_224"),
    "Sequential(timm resnet18, Linear)": lambda: nn.Sequential(timm("resnet18", num_classes=0)(), nn.Linear(512, 3)),
    "transformers BERT": transformers("Bert"),
    "transformers BERT classifier": transformers("Bert", "ForSequenceClassification"),
    "transformers BERT masked LM": transformers("Bert", "ForMaskedLM"),
    "transformers DistilBERT classifier": transformers("DistilBert", "ForSequenceClassification"),
    "transformers RoBERTa classifier": transformers("Roberta", "ForSequenceClassification"),
    "transformers XLM-RoBERTa classifier": transformers("XLMRoberta", "ForSequenceClassification"),
    "transformers DeBERTa classifier": transformers("DebertaV2", "ForSequenceClassification"),
    "transformers GPT-2 LM": transformers("GPT2", "LMHeadModel"),
    "transformers GPT-2 classifier": transformers("GPT2", "ForSequenceClassification"),
    "transformers T5": transformers("T5", "ForConditionalGeneration"),
    "transformers Llama LM": transformers("Llama", "ForCausalLM"),
    "transformers Llama classifier": transformers("Llama", "ForSequenceClassification"),
    "transformers ViT classifier": transformers("ViT", "ForImageClassification"),
    "sentence-transformers": sentence_transformer,
    "PEFT LoRA": lora,
    "braindecode ShallowFBCSPNet": braindecode("ShallowFBCSPNet"),
    "braindecode EEGNet": braindecode("EEGNet"),
    "skada DANN": dann,
    "LSTM": LSTM,
    "U-Net": UNet,
}
