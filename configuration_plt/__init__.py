from .configuration_plt import PLTConfig

__all__ = ["PLTConfig"]
