"""What skorch lacks: stages, order and context of callbacks, a clock, several processes.

`callback_set` is the base of all callbacks, with the `stages`, which `from_functions` fills; a `run` is one call of
``fit``, which skorch drives by `adaptors`, and a method of the net that gives way to a `stand_in`. Its callbacks are in
`order` by weight and share a `context`, in which `outputs` are shown. The `clock` reads the history, `trained` what it
says of what trained when, `asked` how many epochs are wanted, `belonging` to which net a state belongs.

`monitors` and `scoring` are about scores, `kept_weights` about the weights that are restored, `processes` about
several that train one net. `printed`, `sink`, `callback_html` and `output_folder` are about what users see; `recipe`
makes classes that can be pickled.
"""
