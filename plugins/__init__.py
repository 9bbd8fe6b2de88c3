"""Built-in plugins, each registered on import: see ``openrlhf-qs plugins``. Installed as ``openrlhf_qs.plugins``."""
