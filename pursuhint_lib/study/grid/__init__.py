"""What is trained: ways to choose hint layers, the settings of every run, and the checks of a profile."""
