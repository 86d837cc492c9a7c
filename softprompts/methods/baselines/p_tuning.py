"""P-tuning: a prompt that a small network makes from trained embeddings.

Liu, Zheng, Du, Ding, Qian, Yang and Tang, "GPT Understands, Too", 2021, https://arxiv.org/abs/2103.10385

    mlp:   P_i = W_3 ReLU(W_2 ReLU(W_1 e_i + b_1) + b_2) + b_3,    i = 1..l
    lstm:  P_i = W_2 ReLU(W_1 [forward_i ; backward_i] + b_1) + b_2,    forward, backward = BiLSTM(e_1..e_l)

Trained: the embeddings ``e (l, d)`` and the network; ``l*d + (d*h + h) + (h*h + h) + (h*d + d)`` numbers with the MLP.
Dropped after training, which leaves a plain prompt.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from softprompts.methods.about import PLAIN_FORMS, About, Space
from softprompts.methods.contract import Component, Method, MethodConfig, Rows, Shape
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("p-tuning")
@settings
class PTuningConfig(MethodConfig):
    """Settings of P-tuning.

    Attributes:
        encoder: the network: "mlp", token by token, or "lstm", along the prompt in both directions.
        hidden_size: ``h``, width inside; of the LSTM, in each direction.
        lstm_layers: layers of the LSTM.
        lstm_dropout: dropout between them in training.
    """

    encoder: Literal["mlp", "lstm"] = "mlp"
    hidden_size: Annotated[int, Field(ge=1)] = 128
    lstm_layers: Annotated[int, Field(ge=1)] = 2
    lstm_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    uses_tokens = True
    searched: ClassVar[Space] = {"encoder": ("mlp", "lstm"), "hidden_size": (64, 128, 256)}
    about = About(
        line="a prompt that a small network makes",
        paper='Liu et al., "GPT Understands, Too", 2021, https://arxiv.org/abs/2103.10385',
        equation="P_i = W_3 ReLU(W_2 ReLU(W_1 e_i + b_1) + b_2) + b_3; lstm: W_2 ReLU(W_1 BiLSTM(e)_i + b_1) + b_2",
        trained="embeddings e (l, d) and the network",
        count="l*d + 2*d*hidden_size + hidden_size*hidden_size + 2*hidden_size + d (mlp)",
        once="the prompt",
        folds_to="tokens",
        exports=PLAIN_FORMS,
        differs="The paper puts its tokens into a template and, on SuperGLUE, trains the backbone as well; here, as "
        "where later papers compare with it, the prompt goes in front of the input and the backbone is frozen.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Where there is no second layer to drop the input of, a dropout would be silently ignored.
        layers = self.lstm_layers if self.encoder == "lstm" else 0
        self.require(
            layers > 1 or not self.lstm_dropout, "lstm_dropout needs encoder='lstm' and lstm_layers of 2 or more"
        )


class PTuning(Method, config=PTuningConfig):
    """Embeddings ``(l, d)``, the LSTM (None with an MLP), and the linear layers, all with torch's own start."""

    def __init__(self, config: PTuningConfig, shape: Shape):
        super().__init__(config)
        width, hidden = shape.hidden_size, config.hidden_size
        self.embeddings = nn.Parameter(nn.init.normal_(torch.empty(config.num_virtual_tokens, width)))
        self.lstm: nn.LSTM | None = None
        if config.encoder == "lstm":
            layers, dropout = config.lstm_layers, config.lstm_dropout
            self.lstm = nn.LSTM(width, hidden, layers, dropout=dropout, bidirectional=True, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))
        else:
            inner = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
            self.mlp = nn.Sequential(*inner, nn.Linear(hidden, width))

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Tokens ``(1, l, d)``."""
        inside = self.embeddings.unsqueeze(0)
        if self.lstm is not None:
            inside, _ = self.lstm(inside)
        return SoftPrompt(tokens=self.mlp(inside))

    def components(self) -> dict[str, Component]:
        """The embeddings and the network."""
        network = [*([] if self.lstm is None else self.lstm.parameters()), *self.mlp.parameters()]
        return {
            "embeddings": Component([self.embeddings], learning_rate=1e-2),
            "encoder": Component(network, learning_rate=1e-3),
        }
