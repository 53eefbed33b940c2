"""Fetches and loads what its standard input lists, `[[base, transformer], ...]`, and prints as JSON what became of it:
the parameters of text encoders, VAE and transformer together, or the sentence of a ValueError. A process of its own,
because the hub's address is read on import."""

import json
import logging
import sys

import torch

from tryon.console import load_libraries
from tryon.flux.load import fetch_models, load_scheduler, load_text_encoders, load_transformer, load_vae

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
load_libraries("torch", "diffusers", "transformers")

results = []
for base, transformer in json.load(sys.stdin):
    try:
        files = fetch_models(base, transformer, None)
        texts = load_text_encoders(files.base, torch.float32)
        load_scheduler(files.base)
        loaded = (
            texts.text_encoder,
            texts.text_encoder_2,
            load_vae(files.base, torch.float32, torch.device("cpu")),
            load_transformer(files.transformer, torch.float32),
        )
        results.append(sum(parameter.numel() for model in loaded for parameter in model.parameters()))
    except ValueError as error:
        results.append(str(error))
print(json.dumps(results))
