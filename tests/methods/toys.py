"""Toy methods, one for each need the contract of a method must carry, and a loader that makes their samples up.

They are as small as the need allows: what is tested with them is the engine, `joined`, the checkpoint and the network
folder, not what they learn. Shapes: B batch, C channels, H W pixels, F features, K prototypes, S planes, L tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medssl.batch import Batch, Draw, Facts, StreamFacts, hash64
from medssl.joined import joined
from medssl.methods.anatomy import Anatomy
from medssl.methods.mae import MAE
from medssl.methods.method import Group, Losses, Method, MethodConfig, Views, decay_groups
from medssl.nets.encoder import DynUNetConfig, Encoder, ViTConfig, build_encoder
from medssl.nets.frozen import Frozen, Teacher, assign_
from medssl.train import TrainConfig, train

SIZE, ITEMS, BATCH = 16, 24, 8
SMALL = DynUNetConfig(channels=(8, 8, 16), strides=(2, 2, 2), features=8, norm="group")


def small_encoder(seed: int = 0, **keys: Any) -> Encoder:
    """A 2D U-Net of group norm: batch norm would make a sample depend on its batch, and no law could hold."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(SMALL.model_copy(update=keys), channels=1, shape=(SIZE, SIZE), spacing_mm=(1.0, 1.0))


class ToyLoader:
    """Samples made from their number: a bright square on noise, whose place is its content; tokens name the place."""

    def __init__(self, streams: Mapping[str, int] | None = None, *, planes: int = 0, pairs: bool = False) -> None:
        self.streams, self.planes, self.pairs = dict(streams or {"main": BATCH}), planes, pairs

    def facts(self, steps: int) -> Facts:
        shape = (SIZE, SIZE)
        streams = {
            n: StreamFacts("image2d", shape, 1, ITEMS, b, (1.0, 1.0), vocabulary=32) for n, b in self.streams.items()
        }
        return Facts(steps, streams)

    def sample(self, stream: str, n: int) -> dict[str, Any]:
        index = (n * 7 + n // ITEMS) % ITEMS  # a permutation of the items in every epoch
        key = hash64(5, stream, n)
        draw = Draw(torch.tensor([key]))
        copies = max(1, self.planes, 2 * self.pairs)
        image = (draw.of("pixels").uniform(copies, 1, SIZE, SIZE)[0] * 300).to(torch.int16)
        i, j = index % 6, index // 6
        image[:, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += 500
        present = torch.arange(copies) < 1 + n % copies
        affine = torch.eye(4).repeat(copies, 1, 1)
        stacked = self.planes or self.pairs
        if self.planes:
            image[~present] = 7  # what is absent must change nothing
        return {
            "image": image if stacked else image[0],
            "affine": affine if stacked else affine[0],
            "intensity": torch.tensor([0.0, 800.0, 0.0, 800.0]),
            "index": torch.tensor(index),
            "key": torch.tensor(key),
            "image_id": f"{stream}-{index}",
            "tokens": torch.tensor([i, j, 8 + i]),
            "present": present,
            "box": torch.tensor([[0, 0], [SIZE, SIZE]]),
            "start": torch.zeros(2, dtype=torch.int64),
        }

    def stream(self, start_step: int, steps: int, *, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        for step in range(start_step, steps):
            out = {}
            for name, size in self.streams.items():
                share = size // ranks
                first = step * size + rank * share
                samples = [self.sample(name, n) for n in range(first, first + share)]
                out[name] = {
                    k: [s[k] for s in samples] if k == "image_id" else torch.stack([s[k] for s in samples])
                    for k in samples[0]
                }
            yield out if set(out) != {"main"} else out["main"]


class Toy(Method):
    """What the toys share: two noisy views of the image, and a projected vector of each."""

    class Config(MethodConfig):
        features: int = 8

    def __init__(self, config: Any, encoder: Any, facts: Facts) -> None:
        super().__init__(config, encoder, facts)
        self.projector = nn.Linear(encoder.out_channels[0], config.features)

    def noisy(self, image: Tensor, draw: Draw) -> Tensor:
        return (image + 0.1 * draw.normal(*image.shape[1:])).to(self.projector.weight.dtype)

    def views(self, batch: Batch, step: int) -> Views:
        draw = Draw(batch["key"])
        return {v: self.noisy(batch["image"], draw.of(v)) for v in ("one", "two")} | {"index": batch["index"]}

    def embed(self, image: Tensor) -> Tensor:
        # The finest map, so that every parameter of the U-Net gets a gradient (rule 4 of the contract).
        return functional.normalize(self.projector(self.encoder(image)[0].flatten(2).mean(2)), dim=1)


class Queue(Toy):
    """Negatives from a queue of earlier rows, as in MoCo: a buffer that after_step moves."""

    def __init__(self, config: Any, encoder: Any, facts: Facts) -> None:
        super().__init__(config, encoder, facts)
        start = Draw(torch.tensor([3])).normal(16, config.features)[0]
        self.register_buffer("queue", functional.normalize(start, dim=1))

    def forward(self, views: Views) -> Losses:
        one, two = self.embed(views["one"]), self.embed(views["two"])
        near = (one * two).sum(1, keepdim=True)
        logits = torch.cat([near, one @ self.queue.mT], 1) / 0.2
        return Losses.of(contrast=-logits.log_softmax(1)[:, 0].mean(), seen={"features": two})

    def after_step(self, step: int, seen: Mapping[str, Tensor]) -> None:
        assign_(self.queue, torch.cat([seen["features"], self.queue])[: len(self.queue)])


class Memory(Toy):
    """DeepCluster: a memory by sample number, k-means once an epoch, labels -100 while it fills."""

    def __init__(self, config: Any, encoder: Any, facts: Facts) -> None:
        super().__init__(config, encoder, facts)
        self.period = -(-facts.items // facts.batch)
        self.prototypes = nn.Linear(config.features, 4, bias=False)
        self.register_buffer("memory", torch.zeros(facts.items, config.features))
        self.register_buffer("labels", torch.full((facts.items,), -100))

    def forward(self, views: Views) -> Losses:
        z = self.embed(views["one"])
        labels = self.labels[views["index"]]
        # cross_entropy over nothing but -100 is NaN, hence one value a sample
        each = functional.cross_entropy(self.prototypes(z) / 0.2, labels.clamp_min(0), reduction="none")
        loss = (each * (labels >= 0)).mean()
        return Losses.of(cluster=loss, seen={"features": z, "index": views["index"]})

    def after_step(self, step: int, seen: Mapping[str, Tensor]) -> None:
        assign_(self.memory, seen["features"], rows=seen["index"])
        if (step + 1) % self.period == 0:
            centres = self.memory[torch.randperm(len(self.memory))[:4]].clone()  # the engine has seeded the generator
            for _ in range(5):
                labels = (self.memory @ centres.mT).argmax(1)
                for k in range(4):
                    if (labels == k).any():
                        centres[k] = functional.normalize(self.memory[labels == k].mean(0), dim=0)
            assign_(self.labels, labels)
            assign_(self.prototypes.weight, centres, forget=True)


class FrozenAtFirst(Toy):
    """SwAV: prototypes that wait for two steps, Sinkhorn over the whole step's rows."""

    joins = True

    def __init__(self, config: Any, encoder: Any, facts: Facts) -> None:
        super().__init__(config, encoder, facts)
        self.prototypes = nn.Parameter(Draw(torch.tensor([4])).normal(4, config.features)[0])

    def forward(self, views: Views) -> Losses:
        one, two = joined(self.embed(views["one"])), joined(self.embed(views["two"]))
        scores = one @ functional.normalize(self.prototypes, dim=1).mT
        with torch.no_grad():
            q = (two @ functional.normalize(self.prototypes, dim=1).mT / 0.1).exp()
            for _ in range(3):
                q = q / q.sum(0)
                q = q / q.sum(1, keepdim=True)
        return Losses.of(swap=-(q * (scores / 0.2).log_softmax(1)).sum(1).mean())

    def groups(self) -> list[Group]:
        rest = decay_groups(self, skip=[self.prototypes])
        return [*rest, Group((self.prototypes,), decay=False, frozen_steps=2)]


class MatchedPairs(Toy):
    """Two crops of matching anatomy in one sample: (B, V=2, C, H, W)."""

    needs = ("image", "affine")

    def views(self, batch: Batch, step: int) -> Views:
        draw = Draw(batch["key"])
        return {v: self.noisy(batch["image"][:, i], draw.of(v)) for i, v in enumerate(("one", "two"))}

    def forward(self, views: Views) -> Losses:
        one, two = self.embed(views["one"]), self.embed(views["two"])
        return Losses.of(alignment=(1 - (one * two).sum(1)).mean(), seen={"features": one})


class TwoStreams(Toy):
    """Two kinds of data in every step, each with its own loss; two encoders leave."""

    def __init__(self, config: Any, encoder: Any, facts: Facts) -> None:
        super().__init__(config, encoder, facts)
        self.volume = small_encoder(9)
        self.volume_projector = nn.Linear(self.volume.out_channels[0], config.features)

    def views(self, batch: Batch, step: int) -> Views:
        return {name: self.noisy(part["image"], Draw(part["key"])) for name, part in batch.items()}

    def forward(self, views: Views) -> Losses:
        image = self.embed(views["image"])
        volume = self.volume_projector(self.volume(views["volume"])[0].flatten(2).mean(2))
        terms = {"image": (image[:, 0] - 1).square().mean(), "volume": (volume - 1).square().mean(1).mean()}
        return Losses.of(weights={"volume": 0.5}, **terms)

    def encoders(self) -> dict[str, nn.Module]:
        return {"image": self.encoder, "volume": self.volume}


class Planes(Toy):
    """A study of one to three planes: what `present` says is absent changes nothing; a mean a sample comes first."""

    needs = ("image", "present")

    def views(self, batch: Batch, step: int) -> Views:
        return {"image": self.noisy(batch["image"], Draw(batch["key"])), "present": batch["present"]}

    def forward(self, views: Views) -> Losses:
        image, present = views["image"], views["present"]
        image = torch.where(present[..., None, None, None], image, torch.zeros_like(image))
        each = self.embed(image.flatten(0, 1)).unflatten(0, present.shape)  # (B, S, F)
        error = (each[..., 0] - 0.5).square() * present
        return Losses.of(planes=(error.sum(1) / present.sum(1).clamp_min(1)).mean())


class TextTokens(Toy):
    """CLIP: images against their tokens, over the whole step, with a learned scale of shape (1,)."""

    needs = ("image", "tokens")
    joins = True

    def __init__(self, config: Any, encoder: Any, facts: Facts) -> None:
        super().__init__(config, encoder, facts)
        self.words = nn.EmbeddingBag(facts.vocabulary, config.features)
        self.scale = nn.Parameter(torch.ones(1))

    def views(self, batch: Batch, step: int) -> Views:
        return {"image": self.noisy(batch["image"], Draw(batch["key"])), "tokens": batch["tokens"]}

    def forward(self, views: Views) -> Losses:
        image = joined(self.embed(views["image"]))
        text = joined(functional.normalize(self.words(views["tokens"]), dim=1))
        logits = self.scale.exp() * image @ text.mT
        target = torch.arange(len(logits))
        both = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.mT, target)
        return Losses.of(contrast=both / 2)

    def after_step(self, step: int, seen: Mapping[str, Tensor]) -> None:
        assign_(self.scale, self.scale.clamp(0, 4.6))


class EMATeacher(Toy):
    """BYOL: predict what a slowly following teacher says; the momentum rises, as a tensor made in views."""

    def __init__(self, config: Any, encoder: Any, facts: Facts) -> None:
        super().__init__(config, encoder, facts)
        self.predictor = nn.Linear(config.features, config.features)
        self.teacher = Teacher(encoder)
        self.teacher_projector = Teacher(self.projector)

    def forward(self, views: Views) -> Losses:
        guess = functional.normalize(self.predictor(self.embed(views["one"])), dim=1)
        maps = self.teacher(views["two"])
        wanted = functional.normalize(self.teacher_projector(maps[0].flatten(2).mean(2)), dim=1)
        return Losses.of(agreement=(2 - 2 * (guess * wanted).sum(1)).mean(), seen={"teacher": wanted})

    def after_step(self, step: int, seen: Mapping[str, Tensor]) -> None:
        momentum = 1 - 0.1 * (1 - step / self.facts.steps)
        self.teacher.update(self.encoder, momentum)
        self.teacher_projector.update(self.projector, momentum)


class SecondStage(Toy):
    """Starts from another run's weights, and keeps a frozen copy of them as its target."""

    def __init__(self, config: Any, encoder: Any, facts: Facts) -> None:
        super().__init__(config, encoder, facts)
        import copy

        self.first = Frozen(copy.deepcopy(encoder))

    def forward(self, views: Views) -> Losses:
        own = self.encoder(views["one"])[0].flatten(2).mean(2)
        target = self.first(views["two"])[0].flatten(2).mean(2)
        self_term = (self.projector(own) ** 2).mean(1).mean()
        return Losses.of(distillation=(own - target).square().mean(1).mean(), projector=self_term)


def make_real(name: str, steps: int) -> tuple[Method, ToyLoader]:
    """Build a shipped method on the toys' images."""
    loader = ToyLoader()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        facts = loader.facts(steps)
        if name == "mae tokens":
            section = ViTConfig(patch=4, width=16, depth=2, heads=2, mlp=32)
            encoder = build_encoder(section, channels=1, shape=(SIZE, SIZE), spacing_mm=(1.0, 1.0))
            config = MAE.Config(form="tokens", decoder_width=16, decoder_layers=1, decoder_heads=2)
            return MAE(config, encoder, facts), loader
        if name == "mae dense":
            return MAE(MAE.Config(form="dense", block=4, ratio=0.6), small_encoder(0), facts), loader
        return Anatomy(Anatomy.Config(points=16, ignore_mm=3.0, across_weight=0.5), small_encoder(0), facts), loader


REAL = ("mae tokens", "mae dense", "anatomy")
"""The shipped methods: the laws that hold for toys hold for them."""


def gradients(name: str, **keys: Any) -> dict[str, Tensor]:
    """The gradient of one step of a shipped method, summed over its microbatches, before ranks are averaged.

    Compared instead of weights: AdamW turns the rounding noise of a gradient that should be 0 into a whole step.
    """
    method, loader = make_real(name, 1)
    found: dict[str, Tensor] = {}
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:

            def add(gradient: Tensor, key: str = key) -> None:
                found[key] = found.get(key, torch.zeros_like(gradient)) + gradient

            parameter.register_hook(add)
    with tempfile.TemporaryDirectory() as out:
        train(method, loader, TrainConfig(steps=1, clip=0, device="cpu", **keys), Path(out))
    return found


def assert_same_gradient(one: Mapping[str, Tensor], two: Mapping[str, Tensor], tolerance: float = 1e-4) -> None:
    """Losses are float32: what differs by more than rounding, relative to the largest entry, is wrong."""
    assert one.keys() == two.keys()
    scale = max(float(value.abs().max()) for value in one.values())
    for key, value in one.items():
        assert float((value - two[key]).abs().max()) <= tolerance * scale, key


def make(name: str, *, steps: int = 6, weights: Path | None = None) -> tuple[Method, ToyLoader]:
    """Build a toy and the loader it needs, always with the same first weights."""
    if name in REAL:
        return make_real(name, steps)
    cls, options = TOYS[name]
    loader = ToyLoader(**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        encoder = small_encoder(0, weights=weights)
        facts = loader.facts(steps)
        return cls(cls.Config(), encoder, facts), loader


TOYS: dict[str, tuple[type[Toy], dict[str, Any]]] = {
    "queue": (Queue, {}),
    "memory with k-means": (Memory, {}),
    "prototypes frozen at first": (FrozenAtFirst, {}),
    "matched pairs": (MatchedPairs, {"pairs": True}),
    "two streams, two encoders": (TwoStreams, {"streams": {"image": BATCH, "volume": BATCH // 2}}),
    "planes of variable number": (Planes, {"planes": 3}),
    "text tokens": (TextTokens, {}),
    "EMA teacher": (EMATeacher, {}),
    "second stage": (SecondStage, {}),
}
