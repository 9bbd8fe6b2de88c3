"""What ``garm`` puts into OpenRLHF's ``train_rm``: a trainer whose loss is a registered objective.

OpenRLHF's trainer takes a batch apart into five places (ids and mask of the chosen, of the rejected texts, margin),
asks :meth:`~SuggestionRewardModelTrainer.concatenated_forward` for the rewards of both, and its ``loss_fn`` for a
number. :meth:`openrlhf_qs.garm.impressions.ImpressionDataset.collate_fn` fills the five places with what the head
needs. Imported by its patch alone, for its base is OpenRLHF's class.
"""

from __future__ import annotations

from openrlhf.trainer.rm_trainer import RewardModelTrainer

from openrlhf_qs.garm.gradient_monitor import GradientMonitor


class SuggestionRewardModelTrainer(RewardModelTrainer):
    """The trainer logs, counts and evaluates means; all that the loss wants waits in ``batch``."""

    def __init__(self, head, objective, *args, **kwargs) -> None:
        """
        Args:
            head, objective: instances of a registered reward model and of a registered objective.
            args, kwargs: of OpenRLHF.
        """
        super().__init__(*args, **kwargs)
        self.head = head
        self.objective = objective
        self.loss_fn = self.objective_loss
        # Whoever asks the model cuts conversations to that (openrlhf_qs.garm.reward_model.trained_length).
        model = self.strategy._unwrap_model(self.model)
        model.config.reward_model["max_len"] = self.strategy.args.data.max_len
        self.monitor = GradientMonitor()

    def concatenated_forward(self, model, input_ids, mask, batch, _):
        """The means of the chosen and the rejected suggestions, ``[pairs]`` each, and the auxiliary loss.

        Args:
            input_ids, mask: ``[rows, length]``, of a batch of impressions.
            batch: the :class:`~openrlhf_qs.garm.impressions.ImpressionBatch` of the model's outputs.
        """
        raw, output = model(
            input_ids, attention_mask=mask, return_output=True, ring_attn_group=self.strategy.ring_attn_group
        )
        self.batch = raw, batch
        mean = self.head.output(raw)[:, 0]
        aux_loss = output.aux_loss if "aux_loss" in output else []
        return mean[batch.pairs[:, 0]], mean[batch.pairs[:, 1]], aux_loss

    def objective_loss(self, chosen_mean, rejected_mean, margin):
        """The objective for the batch that :meth:`concatenated_forward` saw last, one number in nats."""
        return self.objective(self.head, *self.batch)

    def save_logs_and_checkpoints(self, args, global_step, step_bar, logs_dict=None, client_states=None):
        """OpenRLHF's, after a look at the gradient's norm."""
        self.monitor.check(logs_dict["grad_norm"], global_step)
        super().save_logs_and_checkpoints(args, global_step, step_bar, logs_dict, client_states)
