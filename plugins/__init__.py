"""Built-in plugins, each registered on import: see ``openrlhf-qs plugins``. Installed as ``openrlhf_qs.plugins``.

They import torch and whatever else is heavy in the functions that use it: their list is there in half a second.
"""
