"""Serves many prompts on one frozen model over HTTP; rows of several prompts share forward passes.

A request passes four stages, three of them in a thread of their own:

1. `middleware` and `app`, in the event loop, check the request and send the answer.
2. `requests`, in the text thread of `service`, turns texts into token ids, and later the model's output into answers.
3. `batching`, in the model's thread, collects the rows of waiting requests into batches.
4. `engine`, called by the model's thread only, runs a batch through the model.

`prompt_store` finds the files of prompts; they are read in a worker thread while the model runs.
"""
