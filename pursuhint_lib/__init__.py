"""PURSUhInT: which teacher layers should give the hints?

The library behind the notebooks. Modules form layers and import downward only:
``paths files settings`` → ``progress similarity clustering losses statistics plots`` →
``data models taps teachers`` → ``profiling distillers records`` → ``training export`` → ``study``.
"""

__version__ = "0.1.0"
