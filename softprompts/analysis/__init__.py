"""What a trained prompt learned, as numbers and as pictures.

Each kind of analysis is a file: a function that gives plain numbers, and one that draws them. What a method has to
show comes from `Method.views`, so that nothing here asks which method it is.
"""

from softprompts.analysis.attention_maps import Attention, attention_maps
from softprompts.analysis.drawing import Picture
from softprompts.analysis.gates import Gates, gates_of
from softprompts.analysis.masks import Masks, masks_of
from softprompts.analysis.norms import Norms, norms_of
from softprompts.analysis.pictures import WHAT, Drawn, figures, plots_folder, save, write_figures
from softprompts.analysis.routes import Load, load_by_class, load_of
from softprompts.analysis.sample import Sample, sample_of
from softprompts.analysis.saved import PromptTensors, Saved, open_prompts
from softprompts.analysis.selective import Curve, curve
from softprompts.analysis.similarity import Similarity, similarities
from softprompts.analysis.superposition import Superposition, superposition_of
from softprompts.analysis.tokens import Neighbours, neighbours, soft_tokens

__all__ = [
    "WHAT",
    "Attention",
    "Curve",
    "Drawn",
    "Gates",
    "Load",
    "Masks",
    "Neighbours",
    "Norms",
    "Picture",
    "PromptTensors",
    "Sample",
    "Saved",
    "Similarity",
    "Superposition",
    "attention_maps",
    "curve",
    "figures",
    "gates_of",
    "load_by_class",
    "load_of",
    "masks_of",
    "neighbours",
    "norms_of",
    "open_prompts",
    "plots_folder",
    "sample_of",
    "save",
    "similarities",
    "soft_tokens",
    "superposition_of",
    "write_figures",
]
