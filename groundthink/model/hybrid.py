"""The language model, with transformers' face outside and Snapshots inside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from groundthink.errors import ConfigError, StateError
from groundthink.layers import ROLES, Context, RMSNorm, State
from groundthink.layers.addressing import slots_of
from groundthink.layers.gated_delta_net import GatedDeltaNet
from groundthink.model.block import Block
from groundthink.model.config import ModelConfig
from groundthink.model.hf import GroundThinkConfig, SnapshotCache, documents_from_mask
from groundthink.model.init import init_module, scale_residual_writers, start_queries_as_keys
from groundthink.model.snapshot import Snapshot
from groundthink.ops import DeltaMemory, next_token_loss


class HybridForCausalLM(PreTrainedModel, GenerationMixin):
    """A hybrid language model: G layers write memories, S layers read them, all of it causal.

    Args:
        config: a ModelConfig, or the GroundThinkConfig that holds one.
    """

    config_class = GroundThinkConfig  # type: ignore[assignment]
    base_model_prefix = ""
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers declares it so)
    _is_stateful = True
    _keep_in_fp32_modules_strict = ["gates"]  # noqa: RUF012 (from_pretrained casts tensors before it sets them)
    supports_gradient_checkpointing = False

    def __init__(self, config: ModelConfig | GroundThinkConfig) -> None:
        holder = GroundThinkConfig.of(config) if isinstance(config, ModelConfig) else config
        super().__init__(holder)
        sizes = holder.model_config
        self.sizes = sizes
        self._read_later = _layers_read_later(sizes)
        self.embed = nn.Embedding(sizes.vocab_size, sizes.d_model)
        self.embed_norm = RMSNorm(sizes.d_model, sizes.norm_eps) if sizes.embedding_norm else None
        self.blocks = nn.ModuleList(Block(sizes, i) for i in range(len(sizes.layers)))
        self.norm = RMSNorm(sizes.d_model, sizes.norm_eps)
        self.lm_head = nn.Linear(sizes.d_model, sizes.vocab_size, bias=False)
        # An instance attribute, because only this instance knows whether its head is tied.
        self._tied_weights_keys = {"lm_head.weight": "embed.weight"} if sizes.tie_embeddings else {}
        self.post_init()
        scale_residual_writers(self.blocks)
        if sizes.start != "plain":
            start_queries_as_keys(list(self.blocks))  # type: ignore[arg-type]

    # --- the model itself -----------------------------------------------------------------------------------

    def hidden(
        self,
        input_ids: Tensor,
        *,
        snapshot: Snapshot | None = None,
        documents: Tensor | None = None,
        keep_state: bool = True,
    ) -> tuple[Tensor, Snapshot | None]:
        """Normed output of the last layer, [B,T,D], and the snapshot after the last token.

        Args:
            input_ids: [B,T] int64.
            snapshot: what came before; None means nothing.
            documents: [B,T] ids, non-decreasing in a row; the first document of a row continues the snapshot.
            keep_state: whether the snapshot after this segment is wanted.

        Raises:
            StateError: the snapshot does not fit, or the text is longer than `max_length`.
        """
        position = self._check(input_ids, snapshot)
        return self.through(input_ids, position, snapshot=snapshot, documents=documents, keep_state=keep_state)

    def through(
        self,
        input_ids: Tensor,
        position: Tensor,
        *,
        snapshot: Snapshot | None,
        documents: Tensor | None,
        keep_state: bool,
    ) -> tuple[Tensor, Snapshot | None]:
        """`hidden` without its checks: nothing here asks a number of a GPU, so a CUDA graph may hold it.

        Args:
            position: [B] int64, tokens of each row before this segment.
        """
        positions = position[:, None] + torch.arange(input_ids.shape[1], device=input_ids.device)
        x, slots = self.embed(input_ids), slots_of(input_ids, self.sizes.slot_tokens)
        if self.embed_norm is not None:
            with torch.autocast(x.device.type, enabled=False):  # the residual stream keeps the embedding's precision
                x = self.embed_norm(x)
        memories: tuple[DeltaMemory, ...] = ()
        key_weights: tuple[Tensor, ...] = ()
        states: list[State] = []
        for i, block in enumerate(self.blocks):
            context = Context(
                positions=positions,
                documents=documents,
                memories=memories,
                key_weights=key_weights,
                slots=slots,
                keep_state=keep_state,
                keep_memory=i in self._read_later,
            )
            x, state, memory = block(x, None if snapshot is None else snapshot.layers[i], context)
            memories = memories if memory is None else (*memories, memory)
            if memory is not None and self.sizes.read_query == "shared":
                key_weights = (*key_weights, cast(GatedDeltaNet, cast(Block, block).mixer).key_weight)
            if state is not None:
                states.append(state)
        after = Snapshot(tuple(states), position + input_ids.shape[1]) if keep_state else None
        return self.norm(x), after

    def _check(self, input_ids: Tensor, snapshot: Snapshot | None) -> Tensor:
        """The position of each row before this segment."""
        if snapshot is None:
            position = torch.zeros(input_ids.shape[0], dtype=torch.int64, device=input_ids.device)
            longest = input_ids.shape[1]
        else:
            if len(snapshot.layers) != len(self.blocks):
                raise StateError(f"the snapshot is of {len(snapshot.layers)} layers, the model has {len(self.blocks)}")
            if snapshot.batch_size != input_ids.shape[0]:
                raise StateError(f"the snapshot holds {snapshot.batch_size} rows, the input {input_ids.shape[0]}")
            snapshot.check_shapes([cast(Block, block).mixer.state_shapes() for block in self.blocks])
            position = snapshot.position
            # Without a limit nobody needs the number, and reading it would stall a GPU.
            longest = 0 if self.sizes.max_length is None else int(position.max()) + input_ids.shape[1]
        if self.sizes.max_length is not None and longest > self.sizes.max_length:
            raise StateError(
                f"a text of {longest} tokens is longer than this model was told ({self.sizes.max_length})",
                where="max_length",
                fix="shorten the text or load the model with a larger max_length",
            )
        return position

    def prefill(
        self, input_ids: Tensor, *, documents: Tensor | None = None, logits_to_keep: int = 0
    ) -> tuple[Tensor, Snapshot]:
        """Logits [B,T,vocabulary] of a text and the snapshot after it.

        Args:
            input_ids: [B,T] int64.
            documents: [B,T] ids of packed documents.
            logits_to_keep: logits of so many last tokens only; 0 means all.
        """
        return self._continue(None, input_ids, documents, logits_to_keep)

    def resume(
        self, snapshot: Snapshot, input_ids: Tensor, *, documents: Tensor | None = None, logits_to_keep: int = 0
    ) -> tuple[Tensor, Snapshot]:
        """As `prefill`, of the text that follows a snapshot. The given one stays as it is."""
        return self._continue(snapshot, input_ids, documents, logits_to_keep)

    def _continue(
        self, snapshot: Snapshot | None, input_ids: Tensor, documents: Tensor | None, logits_to_keep: int
    ) -> tuple[Tensor, Snapshot]:
        hidden, after = self.hidden(input_ids, snapshot=snapshot, documents=documents)
        assert after is not None
        return self.lm_head(hidden[:, -logits_to_keep:]), after

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        *,
        documents: Tensor | None = None,
        snapshot: Snapshot | None = None,
        keep_state: bool = False,
    ) -> tuple[Tensor, Tensor, Snapshot | None]:
        """Sum of the losses, how many tokens it sums, and the snapshot if asked for.

        Labels stand on the index of their own token; -100 does not count. The model shifts. All logits never exist
        at the same time.
        """
        hidden, after = self.hidden(input_ids, snapshot=snapshot, documents=documents, keep_state=keep_state)
        total, count = next_token_loss(hidden, self.lm_head.weight, labels)
        return total, count, after

    def parameter_roles(self) -> dict[str, str]:
        """Role of every parameter by its full name; a tied head has no entry of its own.

        Raises:
            ConfigError: a layer declares none for one of its parameters.
        """
        roles = {"embed.weight": "embedding"}
        if not self.sizes.tie_embeddings:
            roles["lm_head.weight"] = "embedding"
        for name, module in self.named_modules():
            if isinstance(module, Block):
                roles |= {f"{name}.mixer.{k}": v for k, v in module.mixer.parameter_roles().items()}
                roles |= {f"{name}.ff.{k}.weight": "matrix" for k in ("up", "down")}
                roles |= {f"{name}.{k}.weight": "norm" for k in ("mixer_norm", "ff_norm")}
        roles |= {"norm.weight": "norm", **({"embed_norm.weight": "norm"} if self.sizes.embedding_norm else {})}
        missing = [name for name, _ in self.named_parameters() if roles.get(name) not in ROLES]
        if missing:
            raise ConfigError(f"parameters without a role: {', '.join(missing)}", fix="declare them in their layer")
        return roles

    def set_drop(self, *, own_read: float | None = None, local: float | None = None) -> None:
        """Set how often training drops G layers' own reads and S layers' windows; None leaves it."""
        for block in self.blocks:
            for name, value in (("own_read_drop_prob", own_read), ("local_drop_prob", local)):
                if value is not None and hasattr(block.mixer, name):
                    setattr(block.mixer, name, value)

    @property
    def horizon(self) -> float:
        """Receptive horizon R in tokens, see `ModelConfig.horizon`."""
        return self.sizes.horizon

    # --- transformers' face ---------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: SnapshotCache | None = None,
        use_cache: bool | None = None,
        documents: Tensor | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """transformers' call. Padding on the left is a document of its own, so it changes nothing.

        Args:
            input_ids: [B,T].
            attention_mask: [B,T] or [B, past + T]; zeros mark padding.
            labels: [B,T], on the index of their own token, -100 ignored; `loss` is the mean over the others.
            past_key_values: what an earlier call returned.
            use_cache: whether to return it; default in evaluation mode only.
            documents: [B,T] ids of packed documents, instead of an attention mask.
            logits_to_keep: 0 for all, else the last so many.
            return_dict: only True is supported.
        """
        if not return_dict:
            raise ConfigError("return_dict=False is not supported", fix="read the output by name")
        snapshot = None if past_key_values is None else past_key_values.snapshot
        use_cache = not self.training if use_cache is None else use_cache
        if documents is None and attention_mask is not None:
            documents = documents_from_mask(
                attention_mask[:, -input_ids.shape[1] :], resumes=snapshot is not None, continues=use_cache
            )
        hidden, after = self.hidden(input_ids, snapshot=snapshot, documents=documents, keep_state=bool(use_cache))
        loss = None
        if labels is not None:
            total, count = next_token_loss(hidden, self.lm_head.weight, labels)
            loss = total / count.clamp_min(1)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden),
            past_key_values=SnapshotCache(after) if after is not None else None,
        )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """`generate` starts without a cache; `forward` returns a SnapshotCache."""
        return False

    def _reorder_cache(self, cache: SnapshotCache, beams: Tensor) -> SnapshotCache:
        return SnapshotCache(cache.snapshot.select(beams))

    def _init_weights(self, module: nn.Module) -> None:
        init_module(module, self.sizes)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.embed = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        """The output head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output head."""
        self.lm_head = new_embeddings  # type: ignore[assignment]


def _layers_read_later(sizes: ModelConfig) -> frozenset[int]:
    """Indices of the layers whose memory a later S layer reads: the others store nothing for that."""
    read: set[int] = set()
    for layer, letter in enumerate(sizes.layers):
        if letter == "S":
            below = [i for i in range(layer) if sizes.layers[i] == "G"]
            read |= set(below[-sizes.read_sources_of(layer) :])
    return frozenset(read)


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Elements of all parameters; a tied one is counted once."""
    return sum({id(p): p.numel() for p in parameters}.values())


AutoConfig.register("groundthink", GroundThinkConfig)
AutoModelForCausalLM.register(GroundThinkConfig, HybridForCausalLM)
