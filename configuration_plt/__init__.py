from .configuration_plt import PLTConfig, Stage

__all__ = ["PLTConfig", "Stage"]
