"""``garm``'s dataset in the place of OpenRLHF's: rows of preferences to impressions."""

from __future__ import annotations

from transformers import AutoConfig

from openrlhf_qs.garm.impressions import ImpressionDataset
from openrlhf_qs.models.shared_prefix import can_share_prefix


class SuggestionRewardDataset(ImpressionDataset):
    """Takes what OpenRLHF gives to its ``RewardDataset``."""

    def __init__(self, whole_lists: bool, dataset, tokenizer, max_length, strategy, **kwargs) -> None:
        """
        Args:
            whole_lists: whether the objective reads impressions without a pair too.
            dataset, tokenizer, max_length, strategy, kwargs: of OpenRLHF.
        """
        args = strategy.args
        config = AutoConfig.from_pretrained(args.model.model_name_or_path)
        share_prefix = can_share_prefix(config, args.ds.attn_implementation, args.ds.packing_samples)
        super().__init__(dataset.to_list(), tokenizer, max_length, share_prefix, whole_lists)
        strategy.print(
            f"{self.n_impressions} of {len(dataset)} impressions are read, {len(self)} conversations; "
            f"{self.n_cut} of them cut to {max_length} tokens; shared prefixes: {share_prefix}"
        )
