"""IDK: the model is trained to answer forget questions with "I don't know".

``CE`` of another answer to each forget question, drawn once for each row; with ``+gd`` it is what TOFU calls preference
optimisation (Maini et al. 2024, arXiv 2401.06121).
"""

from uld.methods.registry import Loss
from uld.methods.terms import family, remember

family(
    "idk",
    'Training on "I don\'t know" in place of forget answers',
    "https://arxiv.org/abs/2401.06121",
    Loss("forget", remember),
    offset=False,
    alternatives="instead",
    formula="CE(y′); `idk+gd` is TOFU's preference optimisation",
)
