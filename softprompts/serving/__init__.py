"""Many prompts behind one HTTP endpoint: a frozen model, and rows of all of them in the same passes.

A request goes through four hands: the event loop (`app`) takes it and answers it, one thread (`service`) turns texts
into tokens and scores into answers, one thread (`batching`) owns the model (`engine`) and runs what has come together,
and whatever reads a prompt's files (`store`) does so beside them.
"""
