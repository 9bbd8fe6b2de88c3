"""Cold start: a language model writes the first suggestions, when there is nothing yet that anyone could have clicked.

In: JSON Lines with a ``conversation`` a row, maybe a ``user_id``. Out: a click log to be served. Its ``clicks`` and
its ``timestamp`` are the server's to fill in: until then ``clicks`` is null, so that no reader of click logs takes
what nobody saw for what nobody wanted. ``policy`` says which model and which template made the suggestions.

The model runs here, in vLLM, or behind an OpenAI-compatible endpoint. What it answers is read
as a policy's responses are (:mod:`openrlhf_qs.form.task`) and asked again where it is malformed. A weak model may give
several answers to each conversation, of which the suggestions that differ and keep to the topic are taken. A killed
run goes on where it was, and a second run asks only for what the log does not have yet.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any

from rich.progress import track
from rich.table import Table

from openrlhf_qs.files.journal import Journal, job_keys, model_print
from openrlhf_qs.files.printable import print_table
from openrlhf_qs.files.whole import read_json_lines, write_json_lines
from openrlhf_qs.form.keys import asked_before, text_key
from openrlhf_qs.form.language import in_users_language
from openrlhf_qs.form.prompt import Message, check_conversation
from openrlhf_qs.form.response import N_SUGGESTIONS, format_response, parse_response, response_regex
from openrlhf_qs.form.task import MAX_SUGGESTIONS, Task, in_words
from openrlhf_qs.form.text import width, words
from openrlhf_qs.form.topic import on_topic
from openrlhf_qs.models import engine
from openrlhf_qs.models.endpoint import ChatEndpoint
from openrlhf_qs.models.engine import load_engine, sample
from openrlhf_qs.models.resolve import resolve_model

TEMPLATES = Path(__file__).parent / "templates"
CHUNK = 256  # prompts that vLLM gets in one go, which a kill costs
SHOWN_FAILURES = 20
MAX_WIDTH = 160  # columns; a wider text does not fit under an answer
# What the template shows in place of a question, what models leave unfilled, and a heading.
_PLACEHOLDER = re.compile(
    r"\A(?:(?:(?:the|your|my|an?|other|another|next|further|possible|suggested|sample|example|short|user|follow-?up"
    r"|first|second|third|fourth|fifth|sixth|seventh|eighth) )*(?:question|suggestion|follow-?up)s?"
    r"(?: (?:here|text|goes here))?|(?:\w+ième|première) (?:question|suggestion)"
    r"|(?:\w+ )?(?:frage|vorschlag|pregunta|sugerencia|pergunta|sugestão|domanda|suggerimento|вопрос|подсказка|soru"
    r"|öneri|प्रश्न|सुझाव|سؤال|اقتراح|질문|제안))(?: ?#?\w{1,5})?\s*[.?…:：؟]*\Z"
    r"|\A(?:(?:最初|次|\d+つ目|\d+番目)の)?(?:第?[一二三四五六七八\d]个?)?(?:追问|问题|建议|問題|建議|質問|提案)"
    r"[一二三四五六七八\d]?[.?…:：？]*\Z"
    r"|\A(?:n/?a|n\.a\.|tbd|todo|to do|none|null|xxx+)[.?…]*\Z|\A(?:…|\.\.\.)[.?？…:：]*\Z|[:：]\s*\Z"
    r"|\[[\w ]+\]|\{\w+\}|<\w+>|\$\w+|lorem ipsum",
    re.IGNORECASE,
)
# A model that speaks of itself does not write in the user's voice.
_REFUSAL = re.compile(
    r"\A(?:"
    r"as an? (?:ai|artificial|(?:large )?language model)\b|(?:I['’]m|I am) (?:\w+ )?sorry\b|I apologi[sz]e\b"
    r"|(?:sorry,? (?:but )?)?I(?: cannot| can['’]t| can not| won['’]t| am unable to|['’]m unable to|['’]m not able to)"
    r" (?:help (?:with|you)|assist|answer|provide|suggest|comply|fulfil|discuss|generate)"
    r"|I (?:don['’]t|do not) have (?:access to (?:real-?time|current|the internet|personal)|personal|opinions)"
    r"|(?:很|非常)?(?:抱歉|对不起|對不起)|Es tut mir (?:sehr )?leid|Je suis (?:vraiment )?désolé|Lo siento|Mi dispiace"
    r"|(?:Desculpe|Sinto muito|Lamento),? (?:mas )?(?:eu )?não|(?:Извините|Простите|К сожалению),? (?:но )?я не"
    r"|Üzgünüm|죄송|क्षमा करें|मुझे खेद है|عذرًا|عذرا|آسف|أعتذر|للأسف|Xin lỗi,? (?:nhưng )?tôi không|ขออภัย"
    r"|Maaf, (?:saya|tetapi)|Het spijt me|Przepraszam, ale)"
    r"|\bas an? (?:ai|(?:large )?language model)[\w ]*,? I\b"
    r"|\bI(?:['’]m| am) an ai\b"
    r"|作为(?:一个)?(?:AI|人工智能|语言模型)|我(?:无法|不能)(?:提供|回答|帮助|协助)|申し訳(?:ありません|ございません)"
    r"|als (?:KI|künstliche Intelligenz)|en tant qu['’](?:IA|intelligence)"
    r"|como (?:una? )?(?:IA|inteligencia|inteligência)",
    re.IGNORECASE,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="CONVERSATIONS", help="JSON Lines with one conversation per row, optionally with user_id"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="click log to write, with clicks still null")
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="model that vLLM runs here: folder, hub name, smollm2, GGUF file; with --endpoint, its name there",
    )
    parser.add_argument(
        "--endpoint", default="", metavar="URL", help="for example http://localhost:8000/v1; default: vLLM here"
    )
    parser.add_argument(
        "--template",
        default="follow_up",
        metavar="NAME|FILE",
        help=f"prompt template: {', '.join(sorted(path.stem for path in TEMPLATES.glob('*.txt')))}, or a file in the "
        "same form; default follow_up",
    )
    parser.add_argument(
        "--n_suggestions", type=int, default=N_SUGGESTIONS, help="suggestions per impression, 1 to 8; default 3"
    )
    parser.add_argument("--n_samples", type=int, default=1, help="impressions per conversation; default 1")
    parser.add_argument(
        "--n_answers",
        type=int,
        default=1,
        help="answers that an impression's suggestions are chosen from: those that differ and share a word with "
        "the conversation come first; more than 1 only with vLLM; default 1",
    )
    parser.add_argument(
        "--constrained_enable",
        action="store_true",
        help="let vLLM decode only a numbered list of questions; not with --endpoint",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="sampling temperature; default 1")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="maximum tokens per answer; default 256")
    parser.add_argument(
        "--retries",
        type=int,
        default=3,
        help="further attempts after an answer that failed or is not a response; default 3",
    )
    parser.add_argument("--concurrency", type=int, default=16, help="concurrent requests to an endpoint; default 16")
    parser.add_argument(
        "--timeout_s", type=float, default=120.0, help="seconds to wait for an endpoint's answer; default 120"
    )
    parser.add_argument(
        "--api_key_env",
        default="OPENAI_API_KEY",
        help="environment variable with the endpoint's key; default OPENAI_API_KEY",
    )
    parser.add_argument(
        "--on_error",
        choices=("raise", "skip"),
        default="raise",
        help="what to do if the last attempt fails. raise: stop and keep what there is; a second call "
        "goes on; skip: leave the row out, and list it in the file of failures; default raise",
    )
    parser.add_argument("--seed", type=int, default=0, help="vLLM's seed; default 0")


def run(args: argparse.Namespace) -> None:
    """Ask for what the log does not have yet, write it, say what failed and why."""
    counts = (("n_samples", 1), ("n_answers", 1), ("max_new_tokens", 1), ("concurrency", 1), ("retries", 0))
    for name, least in counts:
        if getattr(args, name) < least:
            raise ValueError(f"--{name} {getattr(args, name)}: give at least {least}")
    if args.endpoint and (args.n_answers > 1 or args.constrained_enable):
        raise ValueError("--n_answers above 1 and --constrained_enable need vLLM here: leave them out, or --endpoint")
    template = read_template(args.template)
    rows = [(line, row) for line, row in enumerate(read_json_lines(args.file), start=1) for _ in range(args.n_samples)]
    for line, row in rows:
        try:
            check_conversation(row.get("conversation"))
        except ValueError as error:
            raise ValueError(f"{args.file}:{line}: {error}") from None
    job = {
        "model": args.model if args.endpoint else model_print(resolve_model(args.model)),
        "template": [template.name, template.version, template.system, template.user],
        "temperature": args.temperature,
        "max_new_tokens": args.max_new_tokens,
        "n_suggestions": Task(args.n_suggestions).n,
        "n_answers": args.n_answers,
        "constrained": args.constrained_enable,
    }
    keys = job_keys(job, [[row["conversation"], row.get("user_id")] for _, row in rows])
    journal = Journal(args.out, keys)
    take_over(journal, args.out)
    by_key = dict(zip(keys, rows, strict=True))
    missing = journal.missing()
    if len(missing) < len(keys):
        print(f"continuing: {len(keys) - len(missing):,} of {len(keys):,} impressions are done")

    prompts = {key: template.messages(by_key[key][1]["conversation"], args.n_suggestions) for key in missing}
    conversations = {key: by_key[key][1]["conversation"] for key in missing}
    policy = f"{args.model}+{template.name}@{template.version}"
    failed: list[tuple[int, str]] = []

    def stop() -> bool:
        return bool(failed) and args.on_error == "raise"

    answers = (_from_endpoint if args.endpoint else _from_vllm)(args, prompts, conversations, stop)
    for key, answer in track(answers, "asking", total=len(missing)):
        line, row = by_key[key]
        if isinstance(answer, str):
            failed.append((line, answer))
        else:
            journal.add({key: impression(key, row, answer, policy)})
    failed.sort()
    if stop():
        problems = [f"{args.file}:{line}: {problem}" for line, problem in failed[:SHOWN_FAILURES]]
        kept = f"{len(journal.place):,} of {len(keys):,} impressions are done"
        raise ValueError("\n".join([*problems, f"{kept}: call again to continue, or with --on_error skip"]))
    report(args, failed, journal.finish())


def impression(key: str, row: Mapping[str, Any], suggestions: Sequence[str], policy: str) -> dict[str, Any]:
    """A row of a click log that was not served yet: ``clicks`` is null, ``timestamp`` that of its making."""
    user = {"user_id": row["user_id"]} if row.get("user_id") is not None else {}
    return {
        "impression_id": key,
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "conversation": row["conversation"],
        "suggestions": list(suggestions),
        "clicks": None,
        **user,
        "policy": policy,
    }


def take_over(journal: Journal, out: str) -> None:
    """Rows that a finished run wrote to ``out`` need not be asked again. ValueError where one is not of this job."""
    if not Path(out).is_file():
        return
    wanted, missing = set(journal.keys), set(journal.missing())
    rows = {row.get("impression_id"): row for row in read_json_lines(out)}
    foreign = [key for key in rows if key not in wanted]
    if foreign:
        raise ValueError(
            f"{out} has {len(foreign)} of {len(rows)} impressions from another model, template, option or "
            "conversation: give another --out"
        )
    journal.add({key: row for key, row in rows.items() if key in missing})


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt for cold start.

    Attributes:
        name: of the file, without its ending.
        version: to be raised with every change of the text; both go into the log's ``policy``.
        system: the system message, empty for none.
        user: the last user message. ``$conversation`` in it stands for the transcript, without it the messages of
            the conversation go before this one; ``$n`` and ``$number`` for how many suggestions, in digits and in
            English; ``$list`` for an empty list of as many.
        examples: transcripts with the suggestions that a good answer has, as many as can be asked for. They go before
            the conversation as turns of the same form.
    """

    name: str
    version: str
    system: str
    user: str
    examples: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def messages(self, conversation: Sequence[Message], n: int = N_SUGGESTIONS) -> list[Message]:
        """What the model is asked, for ``n`` suggestions."""
        turns = [] if "$conversation" in self.user else list(conversation)
        for transcript, suggestions in self.examples:
            turns.append({"role": "user", "content": self._asked(transcript, n)})
            turns.append({"role": "assistant", "content": format_response(suggestions[:n])})
        transcript = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in conversation)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *turns, {"role": "user", "content": self._asked(transcript, n)}]

    def _asked(self, transcript: str, n: int) -> str:
        return Template(self.user).safe_substitute(conversation=transcript, **in_words(n))


def read_template(name: str) -> PromptTemplate:
    """One of ours by its name, or a file: a line ``version: …``, then ``---``, system message, ``---``, user message.

    Between the last two may stand examples, each a transcript, ``---``, a numbered list, ``---``. ValueError where
    there is no such template, or the file has another form.
    """
    path = TEMPLATES / f"{name}.txt" if re.fullmatch(r"\w+", name) else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.txt")))
        raise ValueError(f"no template {name!r}; give one of {known}, or a file (its name with a path or an ending)")
    text = path.read_text(encoding="utf-8-sig")
    head, *parts = (part.strip() for part in re.split(r"^---[ \t]*$\n?", text, flags=re.MULTILINE))
    version = re.fullmatch(r"version:[ \t]*([\w.-]+)", head)
    if version is None or len(parts) < 2 or len(parts) % 2 or not parts[-1]:
        raise ValueError(
            f"{path} is not a template: give a line 'version: 1', a line '---', the system message (may be empty), "
            "a line '---' and the user message; between these two, examples, each a conversation and a numbered list"
        )
    system, *examples, user = parts
    if examples and "$conversation" not in user:
        raise ValueError(f"{path} has examples but no $conversation in the user message: put one there")
    lists = [parse_response(text, MAX_SUGGESTIONS) for text in examples[1::2]]
    problem = next((one.problem for one in lists if one.problem), "")
    if problem:
        raise ValueError(
            f"{path}: an example needs {MAX_SUGGESTIONS} suggestions, the most that can be requested: {problem}"
        )
    shown = tuple(zip(examples[::2], (one.suggestions for one in lists), strict=True))
    return PromptTemplate(path.stem, version[1], system, user, shown)


def read_suggestions(
    text: str, n: int = N_SUGGESTIONS, finish_reason: str = "stop", conversation: Sequence[Message] = ()
) -> tuple[str, ...]:
    """The ``n`` suggestions of an answer under ``conversation``. ValueError where it is malformed, or nobody should be
    shown them."""
    parsed = Task(n).read(text, finish_reason)
    problem = parsed.problem or _no_suggestions(parsed.suggestions, conversation)
    if problem:
        raise ValueError(f"malformed answer: {problem}")
    return parsed.suggestions


def _no_suggestions(texts: Sequence[str], conversation: Sequence[Message]) -> str:
    """Why nobody should be shown these, in a few words; empty where they are fine."""
    if len(set(map(text_key, texts))) < len(texts):
        return "two equal texts"
    for text, was_asked in zip(texts, asked_before(conversation, texts), strict=True):
        if was_asked:
            return f"what the user asked: {text[:40]!r}"
        if width(text) > MAX_WIDTH:
            return f"a text of {width(text)} columns: {text[:40]!r}"
        if _PLACEHOLDER.search(text):
            return f"a placeholder: {text[:40]!r}"
        if _REFUSAL.search(text):
            return f"a refusal: {text[:40]!r}"
        if not in_users_language(conversation, text):
            return f"not in the user's language: {text[:40]!r}"
    return ""


Answer = tuple[str, ...] | str  # the suggestions, or what was wrong with the last try


def _from_endpoint(
    args: argparse.Namespace,
    prompts: Mapping[str, list[Message]],
    conversations: Mapping[str, list[Message]],
    stop: Callable[[], bool],
) -> Iterator[tuple[str, Answer]]:
    endpoint = ChatEndpoint(args.endpoint, args.model, args.api_key_env, args.timeout_s, args.retries)

    def ask(key: str) -> Answer:
        try:
            return endpoint.ask(
                prompts[key],
                partial(read_suggestions, n=args.n_suggestions, conversation=conversations[key]),
                temperature=args.temperature,
                max_tokens=args.max_new_tokens,
            )
        except ValueError as error:
            return str(error)

    waiting: dict[Future, str] = {}
    still_to_ask = iter(prompts)
    with ThreadPoolExecutor(args.concurrency) as executor:
        while True:
            n_free = 0 if stop() else args.concurrency - len(waiting)
            waiting |= {executor.submit(ask, key): key for key in islice(still_to_ask, n_free)}
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            yield from ((waiting.pop(one), one.result()) for one in done)


def _from_vllm(
    args: argparse.Namespace,
    prompts: Mapping[str, list[Message]],
    conversations: Mapping[str, list[Message]],
    stop: Callable[[], bool],
) -> Iterator[tuple[str, Answer]]:
    llm = load_engine(args.model, args.seed) if prompts else None
    keys = list(prompts)
    for start in range(0, len(keys), CHUNK):
        if stop():
            return
        answers: dict[str, Answer] = dict.fromkeys(keys[start : start + CHUNK], "not asked")
        for _ in range(args.retries + 1):
            open_keys = [key for key, answer in answers.items() if isinstance(answer, str)]
            if not open_keys:
                break
            found = sample(
                llm,
                [prompts[key] for key in open_keys],
                args.max_new_tokens,
                args.temperature,
                args.n_answers,
                regex=response_regex(args.n_suggestions) if args.constrained_enable else "",
            )
            answers.update(
                (key, chosen(one, args.n_suggestions, conversations[key]))
                for key, one in zip(open_keys, found, strict=True)
            )
        yield from answers.items()


def chosen(answers: list[engine.Answer] | str, n: int, conversation: Sequence[Message]) -> Answer:
    """``n`` suggestions out of a model's answers, or what was wrong with the last of them.

    Of one answer its own. Of several any that could be shown and differ, those on the topic first, else as they came.
    """
    if isinstance(answers, str):
        return answers
    if len(answers) == 1:
        try:
            return read_suggestions(answers[0].text, n, answers[0].finish_reason, conversation)
        except ValueError as error:
            return str(error)
    problem = ""
    different: dict[Any, str] = {}  # by the words but for the shortest: "What is a plant?", "What's a plant?"
    for answer in answers:
        parsed = Task(n).read(answer.text, answer.finish_reason)
        problem = parsed.problem or problem
        for text in () if parsed.problem else parsed.suggestions:
            found = _no_suggestions([text], conversation)
            problem = found or problem
            if not found:
                different.setdefault(frozenset(word for word in words(text) if len(word) > 2) or text_key(text), text)
    if len(different) < n:
        return f"{len(different)} different suggestions in {len(answers)} answers: {problem or 'the same again'}"
    return tuple(sorted(different.values(), key=lambda text: not on_topic(conversation, text))[:n])


def report(args: argparse.Namespace, failed: Sequence[tuple[int, str]], n_written: int) -> None:
    """Say what was written and what failed; each failure goes to a file beside the log, the line first."""
    failures = Path(args.out).with_suffix(".failures.jsonl")
    failures.unlink(missing_ok=True)
    table = Table("", "rows", "what", title=f"cold-start: {args.file} to {args.out}")
    table.columns[1].justify = "right"
    table.add_row("written", f"{n_written:,}", "impressions, to be served")
    if failed:
        write_json_lines(failures, ({"line": line, "problem": problem} for line, problem in failed))
        table.add_row("left out", f"{len(failed):,}", f"after {args.retries + 1} tries; all in {failures}")
        for problem, count in Counter(problem for _, problem in failed).most_common(SHOWN_FAILURES):
            table.add_row("", f"{count:,}", problem)
    print_table(table)
