from configuration_plt.configuration_plt import PLTConfig, Stage  # noqa: F401  saved checkpoints hold the real file here
