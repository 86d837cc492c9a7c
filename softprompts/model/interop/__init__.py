"""Prompts in other people's formats: as embeddings, as plain model directories, as adapters of PEFT."""
