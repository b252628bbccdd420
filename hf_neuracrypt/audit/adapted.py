"""An owner's step, with the key: a plain model's embedding fitted on pairs of the owner's own, to be given to a cloud.

A random network's ciphertext patches are nearly linear functions of plain ones. The map that the attack with known
pairs fits is folded into the model, which then sees in ciphertexts at once. So what it gives away is what that attack
reconstructs from as many pairs, and the owner is told before anything is written.
"""

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_neuracrypt.alignment.patches import PatchMap
from hf_neuracrypt.audit import its_packages


with its_packages():
    from hf_neuracrypt.audit.known import attempts, linear_map, mean_images, quality

from hf_neuracrypt.audit.pairs import Pairs
from hf_neuracrypt.models.embeddings import fold


JUDGED = 32  # pairs, beside those that a model is fitted on, that say what is given away
WARNING = (
    "THE ADAPTED MODEL IS WORTH ALL PAIRS THAT IT IS FITTED ON. Who also has the plain model (everybody, if it is "
    "public) reads the map off by comparing the two, and reconstructs every image under this key as from {count} known "
    "pair{s}: {psnr:.1f} dB, SSIM {ssim:.2f}, on {others} others of yours (their mean image: {mean_psnr:.1f} dB, SSIM "
    "{mean_ssim:.2f})."
)


def given_away(pairs: Pairs, count: int, seed: int = 0) -> str:
    """What a model that is fitted on the first `count` of the pairs gives away of the last, in words for the owner."""
    others = range(len(pairs) - JUDGED, len(pairs))
    truth = pairs.plain[others]
    psnr, ssim = max(quality(truth, guess) for guess in attempts(pairs, range(count), others, seed).values())
    mean_psnr, mean_ssim = quality(truth, mean_images(pairs.plain, JUDGED))
    return WARNING.format(
        count=count, s="s" * (count > 1), psnr=psnr, ssim=ssim, others=JUDGED, mean_psnr=mean_psnr, mean_ssim=mean_ssim
    )


def fit(model: PreTrainedModel, pairs: Pairs, count: int, seed: int = 0) -> None:
    """Fold into the embeddings of `model`, in place, the linear map that fits the first `count` of the pairs best.

    Args:
        model: for images and patches of the encryption's sizes.
        pairs: of the others, only the mean of the ciphertexts is used, which everybody has.
        count: what the model is to be worth.
        seed: of the patches that judge the map.

    Raises:
        NeuraCryptError: the model has no linear embedding of patches.
    """
    known = pairs.take(range(count))
    weights, middle, mean = linear_map(known, seed)
    means = np.broadcast_arrays(known.encrypted_mean + middle[0], mean[0])  # (P, D), in grey levels
    fold(model, PatchMap(torch.from_numpy(weights), *(torch.from_numpy(each / 127.5 - 1) for each in means)))
