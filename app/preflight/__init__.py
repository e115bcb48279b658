"""`coldstream preflight`: would `serve` work here, with these settings, before a GPU idles for it.

`device`, `host`, `runtime` and `source` look at one outside system each and give figures; `judgement` makes findings of
figures, without any I/O; `run` has the order, `report` the words and the exit code.
"""
