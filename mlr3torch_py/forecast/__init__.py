"""What will happen, before training; and what happened, after it.

`freeze_plan` makes the `report`, as a `probe` of the net says, of which a `rehearsal` on a `twin` of the net takes the
times, by `measure`, `memory` and `backward`, and of the `cache`. A plan reads as `plan_text`, `plan_html` with its
`plan_strip`, or a `picture` in `ink`, whose words are in `plan_changes`.

`network_summary` and `network_picture` show the `module_rows` of a network; `trained_when` and `history_picture`, with
`history_scores`, what has trained when.
"""
