"""Train a network: the loop in plain sight.

A packed dataset enters; a checkpoint (the best weights), `last.safetensors` and `history.csv` leave. Beside them lies `state.pt`: a run
that was killed, or stopped by Ctrl-C or SIGTERM, goes on from it and ends with the same bytes as one that was not (on one machine, with
as many threads and processes; on a GPU as far as its kernels repeat themselves). It stays: a finished run that is asked for again with
the same data, settings and code is written again in seconds instead of trained again. Without `state*.pt` it is trained from the start.

A batch is cut twice: among processes, each of which takes its share of the crops, and by each into `accumulate` pieces to save memory.
What the loss is divided by is added up over the whole batch first, so that however it is cut, the sum of the pieces is the same. Only
the chance in a network (stochastic depth) falls otherwise then: torch's generator is seeded by (seed, step, rank) before every step.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sereno.model.adversarial import (
    Contest,
    compute_critic_loss,
    compute_fooling_loss,
    create_critics,
    draw_shares,
    restrain_critic,
    show_trusted,
    weigh_critic,
)
from sereno.model.apertures import load_aperture
from sereno.model.batches import Signature
from sereno.model.checkpoint import (
    CheckpointMeta,
    Identity,
    choose_device,
    hash_file,
    identify_run,
    load_start,
    load_state,
    save_checkpoint,
    save_state,
)
from sereno.model.config import TrainSettings
from sereno.model.data import Draw, PatchFeed, SplitArrays, open_split, read_facts, read_records
from sereno.model.faults import describe_memory, explain_faults
from sereno.model.flow import hold_folder
from sereno.model.lessons import Piece, Shown
from sereno.model.monitor import Monitor, read_watched
from sereno.model.ranks import Ranks, StopRequest, catch_signals, join_ranks, sum_gradients, sum_numbers, sum_over_ranks
from sereno.model.run import Best, Run, Sums
from sereno.model.schedule import compute_rate
from sereno.model.tasks import TASKS, check_loss, check_task, create_network
from sereno.model.validation import describe_validation_memory, score_weights
from sereno.model.weighting import MaskEncoder, compute_encoding_loss
from sereno.pipeline.errors import ConfigError, StoreError, TrainingError
from sereno.pipeline.fingerprint import fingerprint

logger = logging.getLogger(__name__)

MAX_SKIPPED: Final = 16
"""Steps in a row that fp16 may leave out: so many halvings bring the first scale of torch's `GradScaler`, 65536, down to 1."""
ENCODER_LR: Final = 1e-2
"""Learning rate of the mask encoder of learned weighting: it has few weights and few steps."""
DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Arithmetic of the network by `precision`."""


class StoppedError(TrainingError):
    """Training was asked to stop by a signal, and can go on."""

    def __init__(self, message: str, number: int) -> None:
        """`number` of the signal; the exit code is what a shell gives a process that died of it."""
        super().__init__(message)
        self.exit_code = 128 + number


class Job(NamedTuple):
    """What does not change while training."""

    dataset: Path
    """Manifest of the dataset."""
    output: Path
    """Checkpoint to write."""
    settings: TrainSettings
    """What is asked for."""
    facts: Signature
    """What the dataset is of."""
    feed: PatchFeed
    """Its training batches, on the device."""
    validation: SplitArrays
    """Its validation patches."""
    ranks: Ranks
    """This process among those that share the work."""
    device: torch.device
    """Where it works."""
    identity: Identity
    """What a saved state must be of, so that this may go on from it."""

    @property
    def state_file(self) -> Path:
        """What a stopped run goes on from."""
        return self.output.with_name("state.pt")


def train_network(dataset: Path, output: Path, settings: TrainSettings) -> None:
    """Train on `dataset` (a manifest) and write the checkpoint `output`; history, last weights and state lie beside it.

    Raises:
        ConfigError: the network does not fit the dataset or `start_from`, the device is not there, or processes are too many or too few.
        DataError: `start_from` was trained on other bands.
        MissingError, StoreError: the dataset is unfinished or damaged, or another process is training to the same place.
        TrainingError: the training split is empty, the loss is no longer finite or has diverged, or memory does not suffice; the weights
            before that, if any step was taken, are in `last.safetensors`.
        StoppedError: a signal asked to stop; the state is saved, if any step was taken.
    """
    with join_ranks(settings) as ranks, hold_folder(output.parent) if ranks.is_first else contextlib.nullcontext():
        device, facts = choose_device(ranks.device), read_facts(dataset)
        check_task(TASKS[facts.task], settings.network, facts)
        check_loss(TASKS[facts.task], settings)
        settings = load_aperture(settings)
        feed = PatchFeed(open_split(dataset, "train"), settings, facts, device=device)
        identity = identify_run(settings, hash_file(dataset), fingerprint("sereno.model.train"))
        job = Job(dataset, output, settings, facts, feed, open_split(dataset, "val"), ranks, device, identity)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            _train(job)


def _train(job: Job) -> None:
    """Begin or go on, take all steps, write what they led to."""
    started, state = time.monotonic(), load_state(job.state_file, identity=job.identity)
    with catch_signals() as request:
        run = _begin_run(job, state, request)
        with _open_monitor(job) as monitor:
            monitor.start(run.step, state["rows"] if state else [])
            with _keep_sound_weights(run, job, monitor):
                if run.best is None:
                    _validate(run, job, monitor)
                _take_steps(run, job, monitor, request)
            if job.ranks.is_first:
                monitor.save()
                _save_weights(run, job)
    if not run.is_over:
        raise StoppedError(_describe_stop(run, job), request.number or signal.SIGTERM)
    logger.info("trained %s: %d steps in %.0f s, kept step %d", job.output, run.step, time.monotonic() - started, _best_of(run).step)
    if run.step and not _best_of(run).step and _best_of(run).score is not None:
        logger.warning(
            "training did not improve on the weights it started from, which are kept (step 0): lower 'train.lr', raise 'train.steps' or "
            "look at val_loss in %s; the weights after the last step are in last.safetensors",
            job.output.with_name("history.csv"),
        )


@contextlib.contextmanager
def _keep_sound_weights(run: Run, job: Job, monitor: Monitor) -> Iterator[None]:
    """Let a fault of training leave the history and the averaged weights from before it. No process waits for another here.

    Raises:
        TrainingError: the fault, with the place of what was left.
    """
    try:
        yield
    except TrainingError as fault:
        if not (job.ranks.is_first and run.has_sound):
            raise
        last = job.output.with_name("last.safetensors")
        try:
            monitor.save()
            save_checkpoint(last, run.sound.weights, _describe(run, job, step=run.sound.step))
        except StoreError as error:
            raise TrainingError(f"{fault}; the weights so far could not be kept ({error})") from fault
        raise TrainingError(
            f"{fault}; the weights so far are in {last} ('train.start_from' goes on from them with other settings)"
        ) from fault


def _begin_run(job: Job, state: Mapping[str, Any] | None, request: StopRequest) -> Run:
    """The run as `state` saw it; without one as it is before its first step, its mask encoder learnt.

    Raises:
        StoppedError: `request` asked to stop while the mask encoder learnt.
    """
    critics = create_critics(job.settings, job.facts.mean, job.facts.std).to(job.device) if job.settings.adversarial else None
    run = Run(_create_network(job), job.settings, device=job.device, bands=len(job.facts.bands), critics=critics)
    if state is not None:
        run.restore(state)
    _check_together(run, job.ranks)
    _log_start(run, job)
    if run.encoder is not None and state is None:
        _train_encoder(run.encoder, job, request)
        if sum_numbers({"asked": request.number is not None}, job.ranks)["asked"]:
            raise StoppedError(
                "stopped while the mask encoder was learnt, before the first step: nothing was saved yet; the same command starts again",
                request.number or signal.SIGTERM,
            )
    return run


def _open_monitor(job: Job) -> Monitor:
    columns = ("step", "lr", *Sums.columns(job.settings), "val_loss", "val_psnr_db")
    watched = read_watched(job.validation, job.facts, job.settings) if job.ranks.is_first else None
    return Monitor(job.output.parent, job.settings, columns, watched, active=job.ranks.is_first)


def _take_steps(run: Run, job: Job, monitor: Monitor, request: StopRequest) -> None:
    """Take one step after the other until the run is over or asked to stop; look at the losses, validate and save whenever that is due."""
    share = job.ranks.rank, job.ranks.world
    with contextlib.closing(job.feed.stream(run.step, share)) as stream:
        while not (run.is_over or run.is_stopping):
            draw = next(stream)
            with explain_faults(describe_memory(job.settings)):
                _take_step(run, draw, job, request)
            if _is_reading_due(run, job, request):
                _read_losses(run, job, monitor)
            if run.is_validation_due:
                _validate(run, job, monitor)
            if run.is_saving_due and job.ranks.is_first:
                save_state(job.state_file, run.to_state() | {"rows": monitor.rows}, identity=job.identity)
            monitor.advance(run.step, run.trend.last)


def _take_step(run: Run, draw: Draw, job: Job, request: StopRequest) -> None:
    """One batch forward and backward, in as many pieces as `accumulate` says, then one step of the optimisers and of the average."""
    settings, ranks = job.settings, job.ranks
    seed_step(settings.seed, run.step, ranks.rank)
    run.network.train()
    run.optimiser.zero_grad()
    weight = run.weigh(draw.batch)
    amounts = sum_over_ranks(run.lesson.measure(draw.batch, settings, weight), ranks)
    pieces = zip(draw.batch.cut(settings.accumulate), weight.chunk(settings.accumulate), strict=True)
    taken = [_learn_piece(run, Piece(piece, piece_weight, amounts, settings, run.step)) for piece, piece_weight in pieces]
    losses = torch.stack([piece_losses for piece_losses, _ in taken]).sum(dim=0)
    asked = losses.new_full((1,), request.number is not None)
    summed = sum_gradients(run.network.parameters(), torch.cat([losses, asked]), ranks)
    run.scaler.unscale_(run.optimiser)
    norm = nn.utils.clip_grad_norm_(run.network.parameters(), settings.clip_norm)
    for group in run.optimiser.param_groups:
        group["lr"] = compute_rate(settings, run.step)
    run.scaler.step(run.optimiser)
    run.scaler.update()
    judged = _teach_critics(run, [shown for _, shown in taken], ranks)
    run.step += 1
    run.update_average()
    run.unread.append(torch.cat([norm[None], summed[:-1], judged, summed[-1:]]))


def _learn_piece(run: Run, piece: Piece) -> tuple[Tensor, tuple[Shown, ...]]:
    """Add the gradients of a piece of a batch to those there are; its share of the parts of the loss, and what critics are shown."""
    settings = run.settings
    with _lower_precision(run):
        answer = run.answer(*piece.batch.inputs)
    learnt = run.lesson.compute(answer, piece)
    values = [learnt.losses[name] for name in run.lesson.name_parts(settings)]
    objective = learnt.losses["total"]
    if settings.adversarial is not None:
        values.append(_fool_critics(run, learnt.shown))
        objective = objective + weigh_critic(settings.adversarial, run.step) * values[-1]
    run.scaler.scale(objective).backward()  # type: ignore[no-untyped-call]
    shown = tuple(pair._replace(made=pair.made.detach()) for pair in learnt.shown) if run.critics is not None else ()
    return torch.stack(values).detach(), shown


def _lower_precision(run: Run) -> torch.autocast:
    """The arithmetic of networks and critics that `precision` says."""
    precision = run.settings.precision
    return torch.autocast(run.device.type, DTYPES[precision], enabled=precision != "fp32")


def _fool_critics(run: Run, shown: Sequence[Shown]) -> Tensor:
    """The adversarial term before it is weighted, the sum over critics, a scalar; 0 as long as it has no weight."""
    adversarial, nothing = run.settings.adversarial, shown[0].made.new_zeros((), dtype=torch.float32)
    if adversarial is None or run.critics is None or not weigh_critic(adversarial, run.step):
        return nothing
    with _lower_precision(run):
        terms = [
            compute_fooling_loss(critic, show_trusted(pair.made, pair.trust), adversarial, images=run.settings.batch_size)
            for critic, pair in zip(run.critics, shown, strict=True)
        ]
    return torch.stack(terms).sum()


def _teach_critics(run: Run, pieces: Sequence[Sequence[Shown]], ranks: Ranks) -> Tensor:
    """So many steps of the critics as their settings say, on the images the network has just made: their loss, margin and penalty (3,).

    Before the end of the warm-up they rest. Without critics there is nothing to report: (0,).
    """
    adversarial, optimiser = run.settings.adversarial, run.critic_optimiser
    if adversarial is None or run.critics is None or optimiser is None:
        return torch.zeros(0, device=run.device)
    judged = torch.zeros(3, device=run.device)
    for turn in range(adversarial.critic_steps if run.step >= adversarial.warmup_steps else 0):
        optimiser.zero_grad()
        shares = draw_shares(run.settings, critics=len(run.critics), step=run.step, turn=turn, part=(ranks.rank, ranks.world))
        parts = shares.to(run.device).chunk(len(pieces), dim=1)
        taken = [contest for piece, part in zip(pieces, parts, strict=True) for contest in zip(run.critics, piece, part, strict=True)]
        losses = [_judge_pair(run, critic, pair, share) for critic, pair, share in taken]
        judged = sum_gradients(run.critics.parameters(), torch.stack(losses).sum(dim=0), ranks)
        optimiser.step()
        restrain_critic(run.critics, adversarial)
    return judged


def _judge_pair(run: Run, critic: nn.Module, pair: Shown, shares: Tensor) -> Tensor:
    """Add the gradients of a critic's loss to those there are; loss, margin and penalty (3,). `shares` are those of `draw_shares`."""
    assert run.settings.adversarial is not None
    contest = Contest(show_trusted(pair.real, pair.trust), show_trusted(pair.made, pair.trust), run.settings.batch_size)
    with _lower_precision(run):
        loss = compute_critic_loss(critic, contest, run.settings.adversarial, shares=shares)
    loss.total.backward()  # type: ignore[no-untyped-call]
    return torch.stack([value.detach().float() for value in loss])


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what torch draws in a step depend on these three alone, so that a run goes on exactly from any step."""
    torch.manual_seed(int(np.random.SeedSequence((seed, 2, step, rank)).generate_state(1, np.uint64)[0]))


def _is_reading_due(run: Run, job: Job, request: StopRequest) -> bool:
    """A GPU is not waited for at every step; several processes look at the same steps, since what they see may stop them."""
    asked = request.number is not None and job.ranks.world == 1
    return job.device.type != "cuda" or run.is_row_due or run.is_saving_due or asked


def _read_losses(run: Run, job: Job, monitor: Monitor) -> None:
    """Look at the steps taken since the last look: stop if one went wrong, else enter them into the history.

    Raises:
        TrainingError: as `_check_step`.
    """
    table = torch.stack(run.unread).tolist()
    run.unread.clear()
    for step, (*values, asked) in enumerate(table, run.step - len(table) + 1):
        run.follow(values)
        _check_step(run, job, step, values)
        run.is_stopping = run.is_stopping or asked > 0
    run.keep_sound()
    if run.is_row_due:
        rate = compute_rate(job.settings, run.step - 1)
        monitor.record({"step": run.step, "lr": rate, **run.sums.to_means(job.settings)})
        run.sums = Sums.begin(job.settings)


def _check_step(run: Run, job: Job, step: int, values: Sequence[float]) -> None:
    """Refuse to go on from step number `step`, the `values` of which the run has just followed, if it went wrong.

    Raises:
        TrainingError: loss or gradient is not finite, fp16 overflows again and again, or the loss has diverged; names the patches.
    """
    limit = job.settings.divergence
    if run.skipped == MAX_SKIPPED:
        found, remedy = f"fp16 overflows {MAX_SKIPPED} times in a row", "set 'train.precision' to bf16"
    elif not run.skipped and not all(map(math.isfinite, values)):
        found, remedy = "loss or gradient is not finite", "lower 'train.lr'"
    elif limit is not None and run.trend.smooth > limit * run.trend.lowest:
        found = f"the loss has diverged: {run.trend.smooth:.4g} after {run.trend.lowest:.4g}"
        remedy = "lower 'train.lr', raise 'train.divergence'"
    else:
        return
    records = read_records(job.dataset, "train")
    names = ", ".join(sorted({records[place].id for place in job.feed.find_patches(step - 1)}))
    where = f"at step {step}, patches {names} of {job.dataset}"
    raise TrainingError(f"{found} {where}: {remedy} or look at these patches")


def _validate(run: Run, job: Job, monitor: Monitor) -> None:
    """Score the averaged weights if there are validation patches, keep the best, and enter the score into the history."""
    score = None
    if job.validation.n_patches:
        with explain_faults(describe_validation_memory()):
            score = score_weights(run, job.validation, signature=job.facts, ranks=job.ranks)
    run.keep_best(score)
    if score is not None:
        monitor.record({"step": run.step, "val_loss": score.loss, "val_psnr_db": score.psnr_db})
        monitor.draw(run.step, run.answer_averaged)
        where = TASKS[job.facts.task].focus
        logger.info("step %d: validation loss %.5f, %s %s dB", run.step, score.loss, where, _in_words(score.psnr_db))


def _train_encoder(encoder: MaskEncoder, job: Job, request: StopRequest) -> None:
    """Teach the small network of learned weighting what a cloud is, on the first batches; then it stays as it is.

    Every process does the same with the whole batches, so that all have the same weights. A `request` ends it at once.
    """
    steps, optimiser = job.settings.loss.encoding_steps, torch.optim.AdamW(encoder.parameters(), lr=ENCODER_LR)
    loss = torch.zeros(())
    with contextlib.closing(job.feed.stream()) as stream:
        for draw in itertools.islice(stream, steps):
            if request.number is not None:
                return
            loss = compute_encoding_loss(encoder, draw.batch)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    logger.info("mask encoder: %d steps, cross-entropy %.4f, now frozen", steps, loss.item())


def _create_network(job: Job) -> nn.Module:
    """The network with its first weights, on the device."""
    settings, start = job.settings, job.settings.start_from
    network = create_network(TASKS[job.facts.task], settings.network, job.facts, seed=settings.seed)
    if start is not None:
        network.load_state_dict(load_start(Path(start).expanduser(), settings, job.facts, where=job.dataset))
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(f"'train.network' {settings.network.name} has no weight that can be learnt: give it a parameter")
    return network.to(job.device)


def _check_together(run: Run, ranks: Ranks) -> None:
    """Refuse processes that would begin at different steps."""
    if sum_numbers({"step": run.step}, ranks)["step"] != ranks.world * run.step:
        raise TrainingError(f"process {ranks.rank} would begin after step {run.step}, others elsewhere: write to a disk that all share")


def _save_weights(run: Run, job: Job) -> None:
    """Write the last weights, and, if the run is over, the best: where the checkpoint is, everything is."""
    meta = _describe(run, job, step=run.step)
    save_checkpoint(job.output.with_name("last.safetensors"), run.average, meta)
    if run.is_over:
        best = _best_of(run)
        scores = {"best_loss": best.score and best.score.loss, "best_psnr_db": best.score and best.score.psnr_db}
        save_checkpoint(job.output, best.weights, meta.model_copy(update={"step": best.step, **scores}))


def _describe(run: Run, job: Job, *, step: int) -> CheckpointMeta:
    """What weights of `step` say about themselves."""
    return CheckpointMeta(
        settings=run.settings,
        bands=job.facts.bands,
        sar_bands=job.facts.sar_bands,
        training_mean=job.facts.mean,
        training_std=job.facts.std,
        task=job.facts.task,
        ratio=job.facts.ratio,
        guide_bands=job.facts.guide_bands,
        guide_mean=job.facts.guide_mean,
        guide_std=job.facts.guide_std,
        dataset_sha256=hash_file(job.dataset),
        step=step,
    )


def _best_of(run: Run) -> Best:
    assert run.best is not None, "the weights at the beginning are validated"
    return run.best


def _describe_stop(run: Run, job: Job) -> str:
    return f"stopped after step {run.step} of {run.settings.steps}, saved in {job.state_file}; the same command goes on from there"


def _log_start(run: Run, job: Job) -> None:
    size = sum(parameter.numel() for parameter in run.network.parameters()) / 1e6
    start = f"going on after step {run.step}" if run.step else "starting"
    where = f"{job.ranks.world} x {job.device}" if job.ranks.world > 1 else job.device
    logger.info("%s: %d steps, %d crops per epoch, %.2f M parameters, %s", start, run.settings.steps, job.feed.epoch_crops, size, where)
    if not job.validation.n_patches:
        early = "" if job.settings.patience is None else ", and 'train.patience' has no effect: there is no early stopping"
        logger.warning("the validation split is empty: the last weights are kept instead of the best%s", early)


def _in_words(ratio: float | None) -> str:
    return "have no" if ratio is None else f"{ratio:.2f}"
