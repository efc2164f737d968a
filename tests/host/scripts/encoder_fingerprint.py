"""The fingerprint of the host's text encoder and VAE, freshly loaded."""

from __future__ import annotations

from importlib import import_module


def main(pack, arguments):
    import comfy.sd
    import torch

    encode = import_module(".nodes.host.encode", pack.__name__)
    with torch.inference_mode():
        _, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(arguments["checkpoint"])
    return encode.HostEncoder(clip, vae).fingerprint
