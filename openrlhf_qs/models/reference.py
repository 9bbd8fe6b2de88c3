"""How likely a reference policy finds responses: their log-perplexity, by transformers."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_qs.form.prompt import Message
from openrlhf_qs.form.task import read_task
from openrlhf_qs.models.device import dtype_on_cpu, pick_device
from openrlhf_qs.models.folder import check_model
from openrlhf_qs.models.template import as_plain_text, end_token, fitted, rendered, token_texts

BATCH_SIZE = 64  # responses


def reference_log_ppl(
    reference: str,
    conversations: Sequence[Sequence[Message]],
    responses: Sequence[str],
    temperature: float = 1.0,
) -> list[float]:
    """Mean negative log-probability of each response and its end under ``reference``, ``[n]``, nats per token.

    ``temperature`` is that of the reference: OpenRLHF divides its logits, too, by the temperature of the rollouts.
    """
    tokens = reference_tokens(reference, conversations, responses, temperature)
    return [sum(nll for _, nll in one) / len(one) for one in tokens]


def reference_tokens(
    reference: str,
    conversations: Sequence[Sequence[Message]],
    responses: Sequence[str],
    temperature: float = 1.0,
) -> list[list[tuple[str, float]]]:
    """For each response the text and the negative log-probability, nats, of each of its tokens; its end comes last.

    ``temperature`` as for :func:`reference_log_ppl`.
    """
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_model(reference)
    tokenizer = AutoTokenizer.from_pretrained(reference)
    tokenizer.padding_side = "left"  # responses end together, and the logits of what stands before are left out
    device = pick_device()
    model = AutoModelForCausalLM.from_pretrained(
        reference, dtype=torch.bfloat16 if device == "cuda" else dtype_on_cpu(reference)
    )
    model.to(device).eval()
    task = read_task(reference)
    own = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    answers = [as_plain_text(tokenizer, response) + end_token(tokenizer) for response in responses]
    n_answer = max(map(len, tokenizer(answers, add_special_tokens=False)["input_ids"])) if answers else 0
    n_most = task.room(own) - n_answer
    prompts = [
        rendered(
            tokenizer,
            fitted(tokenizer, task.messages(conversation), n_most) or task.messages(conversation),
            add_generation_prompt=True,
        )
        for conversation in conversations
    ]
    n_prompt = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]] if prompts else []
    texts = [f"{prompt}{answer}" for prompt, answer in zip(prompts, answers, strict=True)]
    values: list[list[tuple[str, float]]] = [[] for _ in texts]
    piece = token_texts(tokenizer)
    by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    for start in range(0, len(texts), BATCH_SIZE):
        rows = by_length[start : start + BATCH_SIZE]
        encoded = tokenizer(
            [texts[row] for row in rows], padding=True, add_special_tokens=False, return_tensors="pt"
        ).to(device)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        n_response = mask.sum(-1) - torch.tensor([n_prompt[row] for row in rows], device=device)
        kept = int(n_response.max())
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                logits_to_keep=kept + 1,
            ).logits[:, -kept - 1 : -1]
        nll = F.cross_entropy((logits.float() / temperature).transpose(1, 2), ids[:, -kept:], reduction="none")
        of_response = torch.arange(kept, 0, -1, device=device) <= n_response[:, None]
        for row, tokens, some, kept_tokens in zip(rows, ids[:, -kept:], nll, of_response, strict=True):
            values[row] = [*zip(map(piece, tokens[kept_tokens].tolist()), some[kept_tokens].tolist(), strict=True)]
    return values
