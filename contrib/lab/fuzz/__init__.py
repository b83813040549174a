"""Coverage-guided fuzzing of everything that reads what others wrote: packets, knocks, rule files, state.

``python -m lab.fuzz TARGET --runs N``, with contrib and tests on the path, tries N inputs; it takes
atheris (``pip install atheris``).  ``python -m lab.fuzz TARGET FILE`` tries one again, without atheris.
"""
