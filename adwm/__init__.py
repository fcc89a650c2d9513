__version__ = "0.0.1"


def __getattr__(name):
    "`adwm.estimate` is looked up when it is asked for, so that importing the package stays instant."
    if name != "estimate": raise AttributeError(f"module 'adwm' has no attribute '{name}'")
    from .estimation import estimate
    return estimate
