"""OpenAI's interface to prompts of language models: each prompt is a model, and so is the backbone without one.

`schemas` has the requests and responses, `requests` makes rows for the model, `choices` what becomes of them, and
`routes` the endpoints. What is not supported is refused by its name.
"""
