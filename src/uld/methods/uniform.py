"""The target itself becomes uniform on forget answers: ``CE(uniform, π)``, Table 8 of arXiv 2406.08607."""

from uld.methods.registry import Loss
from uld.methods.terms import family
from uld.methods.uld import be_uniform

family(
    "uniform",
    "Uniform predictions on forget answers",
    "https://arxiv.org/abs/2406.08607",
    Loss("forget", be_uniform),
    offset=False,
    formula="CE(uniform, π)",
)
