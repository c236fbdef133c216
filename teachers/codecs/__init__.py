"""Codecs of the cache by name: what users call cached logits, all behind one interface."""

from teachers.codecs.codec import Codec
from teachers.codecs.features import FeaturesCodec
from teachers.codecs.full import FullCodec
from teachers.codecs.hybrid import HybridCodec
from teachers.codecs.sampled import SampledCodec
from teachers.codecs.topk import TopKCodec

CODECS: dict[str, type[Codec]] = {
    "features": FeaturesCodec,
    "hybrid": HybridCodec,
    "topk": TopKCodec,
    "sampled": SampledCodec,
    "full": FullCodec,
}
