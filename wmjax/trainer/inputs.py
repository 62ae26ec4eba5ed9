"""The inputs of a training, checked before the first step."""

import numpy as np

from wmjax.data.latents import LatentStore
from wmjax.data.loader import LoaderConfig
from wmjax.data.shift import ViewTable
from wmjax.data.split import SPLIT_SEED, split_episodes, video_only_episodes
from wmjax.data.statistics import action_spec
from wmjax.data.store import TrainingStore
from wmjax.data.weights import UNIFORM, Mixture
from wmjax.models.prompts import PromptConfig, join_prompts, make_prepare, trim_prompts
from wmjax.models.vla import VLAConfig
from wmjax.trainer.config import Inputs, TrainConfig


def make_inputs(
    store: TrainingStore,
    latents: LatentStore | ViewTable | None,
    prompt: PromptConfig,
    model: VLAConfig,
    config: TrainConfig,
    mixture: Mixture = UNIFORM,
    features: LatentStore | None = None,
) -> Inputs:
    """Splits by episode, takes statistics of the training split only, tokenises one prompt per task.

    Of episodes without actions the statistics of actions and states know nothing; those of the latents do.

    Of the latents, a model that reads none gets the table of views only. ``features`` are read in place of images.

    Raises:
        UserError: latents of another store, an instruction that does not fit the prompt, too few episodes.

    """
    if isinstance(latents, LatentStore):
        latents.check(store)
    train_episodes, val_episodes = split_episodes(store.episodes, config.validation_fraction, SPLIT_SEED)
    video_only = video_only_episodes(store.episodes, train_episodes, mixture.labelled_per_task)
    labelled = np.setdiff1d(train_episodes, np.array(video_only, np.int32))
    encoder_spec = None
    if isinstance(latents, LatentStore):
        if model.memory.reads_latents:
            encoder_spec = latents.training_spec(store, train_episodes, val_episodes)
        else:
            latents = latents.table
    prepare = make_prepare(prompt, model, store.spec)
    return Inputs(
        store=store,
        latents=latents,
        features=features,
        same_shift=config.same_shift,
        train_episodes=train_episodes,
        val_episodes=val_episodes,
        encoder_spec=encoder_spec,
        action_spec=action_spec(store, labelled, model.chunk, config.normalisation, config.delta_actions, config.delay),
        prompts=trim_prompts(join_prompts([prepare(task.instruction) for task in store.tasks]), model),
        prompt_hashes=prepare.hashes,
        loader=LoaderConfig(
            chunk=model.chunk,
            delay=config.delay,
            pending=bool(model.pending),
            rolls_state=model.roll_state,
            history=model.prophet.history,
            future=model.prophet.future,
            target=model.memory.target,
            mixture=mixture,
            images=config.objective == "policy",
            video_only=video_only,
        ),
    )
