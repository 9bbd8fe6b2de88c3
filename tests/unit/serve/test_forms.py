"""Every chat's way to ask, and the answer that it can read."""

import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_qs.serve.forms import (
    as_messages,
    completion_events,
    history,
    in_form,
    read_asked,
    read_transcript,
    same_text,
)

# The prompts as the two send them, their conversations filled in.
OPEN_WEBUI = """### Task:
Suggest 3-5 relevant follow-up questions or prompts that the user might naturally ask next in this conversation as a **user**, based on the chat history, to help continue or deepen the discussion.
### Guidelines:
- Write all follow-up questions from the user’s point of view, directed to the assistant.
- Use the conversation's primary language; default to English if multilingual.
- Response must be a JSON object with a "follow_ups" key containing an array of strings, no extra text or formatting.
### Output:
JSON format: { "follow_ups": ["Question 1?", "Question 2?", "Question 3?"] }
### Chat History:
<chat_history>
USER: How do I bake bread?
ASSISTANT: Mix flour and water.

Then: let it rise.
USER: For how long?
ASSISTANT: Two hours.
</chat_history>"""  # noqa: E501
TITLE = """### Task:
Generate a concise, 3-5 word title with an emoji summarizing the chat history.
### Chat History:
<chat_history>
USER: How do I bake bread?
ASSISTANT: Mix flour and water.
</chat_history>"""
DIFY = """Human: How do I bake bread?
Assistant: Mix flour and water.

Then: let it rise.
Human: For how long?
Assistant: Two hours.
Please help me predict the three most likely questions that human would ask, and keep each question under 20 characters.
MAKE SURE your output is the SAME language as the Assistant's latest response. The output must be an array in JSON format following the specified schema:
["question1","question2","question3"]

questions:
"""  # noqa: E501
CONVERSATION = [
    {"role": "user", "content": "How do I bake bread?"},
    {"role": "assistant", "content": "Mix flour and water.\n\nThen: let it rise."},
    {"role": "user", "content": "For how long?"},
    {"role": "assistant", "content": "Two hours."},
]


def asked(prompt, headers=None, **body):
    return read_asked({"messages": [{"role": "user", "content": prompt}], **body}, headers or {})


@pytest.mark.parametrize(("prompt", "form"), [(OPEN_WEBUI, "follow_ups"), (DIFY, "array")])
def test_the_prompt_says_the_form_and_holds_the_conversation(prompt, form):
    found = asked(prompt, model="suggestions", stream=False)
    assert found.form == form and found.conversation == CONVERSATION and not found.stream


GERMAN = """### Aufgabe:
Schlage drei Anschlussfragen vor, als JSON-Objekt mit dem Schlüssel follow_ups.
### Verlauf:
{}
### Ausgabe:
{{ "follow_ups": ["Frage 1?", "Frage 2?", "Frage 3?"] }}"""
TRANSCRIPT = "\n".join(f"{one['role'].upper()}: {one['content']}" for one in CONVERSATION)
HUMAN = DIFY.partition("\nPlease help me")[0]
ADDED = 'You must output a JSON array like ["question1", "question2", "question3"].'


@pytest.mark.parametrize(
    ("prompt", "form"),
    [
        (GERMAN.format(TRANSCRIPT), "follow_ups"),
        (GERMAN.format(f"<chat_history>\n{TRANSCRIPT}\n</chat_history>"), "follow_ups"),
        (f"Devuelve un objeto JSON con `follow_ups`.\n\n{TRANSCRIPT}", "follow_ups"),
        (f"{TRANSCRIPT}\n\n请给出三个后续问题：{{'follow_ups': [...]}}", "follow_ups"),
        # Dify's instruction is its operator's: SUGGESTED_QUESTIONS_PROMPT
        (
            f"{HUMAN}\nPlease help me predict the three most likely follow-up technical questions a developer asks. "
            'Keep each between 40-60 characters. Output must be JSON array: ["question1","question2"]\nquestions:\n',
            "array",
        ),
        (f'{HUMAN}\n请预测用户最可能提出的三个问题，输出 JSON 数组：["问题1","问题2","问题3"]\nquestions:\n', "array"),
        (f"{HUMAN}\nWas fragt der Mensch wohl als Nächstes?\nquestions:\n", "array"),
        # one from an app's own settings, to which Dify adds a line
        (f"{HUMAN}\nWas fragt der Mensch wohl als Nächstes?\n{ADDED}\nquestions:\n", "array"),
        (f"{HUMAN}\n请预测用户接下来的问题。\n\n{ADDED}\nquestions:\n", "array"),
    ],
)
def test_a_template_in_other_words_or_another_language_is_known_by_its_form(prompt, form):
    found = asked(prompt, model="suggestions")
    assert found.form == form and found.conversation == CONVERSATION


def test_a_chat_about_follow_ups_makes_no_other_task_ours():
    about = TITLE.replace("How do I bake bread?", 'What does {"follow_ups": []} mean?')
    assert asked(about).form is None
    assert asked('What does {"follow_ups": []} mean?').form is None
    assert asked("Please list my questions:\nquestions:\n").form is None


def test_a_dialogue_that_a_message_quotes_stays_in_it():
    quoted = "USER: Go on\nASSISTANT: A scene.\nHuman: Hello\nAssistant: Hi\nTOOL: 42"
    assert read_transcript(quoted) == [
        {"role": "user", "content": "Go on"},
        {"role": "assistant", "content": "A scene.\nHuman: Hello\nAssistant: Hi"},
    ]


@pytest.mark.parametrize(
    "thought",
    [
        "<think>\nThe user bakes.\nHuman-like answer: flour.\n</think>\n\n",
        '<details type="reasoning" done="true" duration="3">\n<summary>Thought</summary>\n> Flour.\n</details>\n',
        "<think></think><thinking>Bread?</thinking>",
        '<think duration="3s">hm</think>\n',
        "[THINK]Bread?[/THINK]",
        "<|channel|>analysis<|message|>Bread?<|end|><|start|>assistant<|channel|>final<|message|>",
    ],
)
def test_what_a_model_thought_is_no_part_of_its_answer(thought):
    prompt = DIFY.replace("Assistant: Two", f"Assistant: {thought}Two")
    assert asked(prompt).conversation == CONVERSATION
    last = {"role": "assistant", "content": f"{thought}Two hours."}
    assert [one["content"].strip() for one in as_messages([*CONVERSATION[:-1], last])][-1] == "Two hours."
    # a user may write about it, and an answer may, after it has begun
    asks = [
        {"role": "user", "content": "<think>What?</think>"},
        {"role": "assistant", "content": "Write <think>a</think>."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "[Analysis]\nFlour costs less."},
    ]
    assert as_messages(asks) == asks
    assert as_messages([{"role": "assistant", "content": "<think>never closed"}]) == []


def test_every_other_task_and_every_chat_is_not_ours():
    assert asked(TITLE).form is None
    assert asked(TITLE, {"x-task": "title_generation"}, model="suggestions-array").form is None
    assert asked("How do I bake bread?").form is None
    # a task that is named is believed, whatever its prompt says
    assert asked(OPEN_WEBUI, {"x-task": "query_generation"}).form is None


def test_a_follow_up_task_with_a_prompt_of_the_users_own_is_known_by_its_header_or_its_model():
    own = "Drei Fragen als JSON array, bitte.\n<chat_history>\nUSER: Hallo\nASSISTANT: Hallo!\n</chat_history>"
    turns = [{"role": "user", "content": "Hallo"}, {"role": "assistant", "content": "Hallo!"}]
    found = asked(own, {"x-task": "follow_up_generation"})
    assert found.form == "array" and found.conversation == turns
    found = asked(own, model="suggestions-follow-ups")
    assert found.form == "follow_ups" and found.conversation == turns


def test_the_name_of_a_model_takes_plain_messages_too():
    found = read_asked({"model": "suggestions-array", "messages": CONVERSATION, "stream": True, "user": "ann"}, {})
    assert (found.form, found.conversation, found.stream, found.user) == ("array", CONVERSATION, True, "ann")


def test_whose_it_is_stands_in_the_headers_of_the_connection_or_in_those_that_open_webui_sends_itself():
    found = asked(OPEN_WEBUI, {"x-chat-id": "c", "x-user-id": "u", "x-message-id": "m", "x-openwebui-chat-id": "no"})
    assert (found.chat, found.user, found.message) == ("c", "u", "m")
    found = asked(OPEN_WEBUI, {"x-openwebui-chat-id": "c2", "x-openwebui-user-id": "u2"})
    assert (found.chat, found.user) == ("c2", "u2")
    found = asked(OPEN_WEBUI, {"x-task": "{{TASK}}", "x-chat-id": "{{CHAT_ID}}", "x-openwebui-chat-id": "c3"})
    assert (found.task, found.chat, found.form) == ("", "c3", "follow_ups")  # a version that fills no template


def test_a_transcript_without_speakers_is_the_users():
    assert read_transcript(" Hello. ") == [{"role": "user", "content": "Hello."}]
    assert read_transcript("") == []


def test_messages_of_every_shape_become_those_of_a_click_log():
    sent = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image_url"}, {"text": "this"}]},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": "half \ud800 of a pair"},
        "no message",
        {"role": ["user"], "content": 7},
    ]
    assert as_messages(sent) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "See\nthis"},
        {"role": "assistant", "content": "half ? of a pair"},
    ]


def test_open_webui_finds_its_object_between_the_first_and_the_last_brace():
    texts = ['What is "{x}"?', "Warum\u2028so?", "为什么？"]
    answer = in_form(texts, "follow_ups")
    cut = answer[answer.index("{") : answer.rindex("}") + 1]
    assert json.loads(cut) == {"follow_ups": texts}
    assert json.loads(in_form([], "follow_ups")) == {"follow_ups": []}
    assert json.loads(in_form(texts, "array")) == texts


def test_dify_finds_its_array_between_the_first_brackets_whatever_is_suggested():
    texts = ["What is a[0] in [[1], [2]]?", 'Why "]"?', "Where does C:\\] end?", "数组[1]是什么？"]
    cut = re.search(r"\[.*?\]", in_form(texts, "array"), re.DOTALL)[0]  # as its parser does
    assert json.loads(cut) == texts
    assert in_form([], "array") == "[]"


LOBE_CHAT = {
    "model": "suggestions",
    "messages": [
        {"role": "system", "content": "You are a sidecar that extracts 0-4 quick-reply suggestions …"},
        {"role": "user", "content": 'Last assistant message:\n"""\nMix flour and water.\n\nThen: let it rise.\n"""'},
    ],
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "follow_up_suggestions",
            "strict": True,
            "schema": {
                "type": "object",
                "required": ["chips"],
                "properties": {
                    "chips": {
                        "type": "array",
                        "maxItems": 2,
                        "items": {
                            "type": "object",
                            "required": ["label", "message"],
                            "properties": {
                                "label": {"maxLength": 20, "minLength": 1, "type": "string"},
                                "message": {"maxLength": 200, "minLength": 1, "type": "string"},
                            },
                        },
                    }
                },
            },
        },
    },
}


def test_lobe_chat_gets_the_objects_of_its_schema_and_none_too_long_for_it():
    found = read_asked(LOBE_CHAT, {})
    assert found.form and found.conversation == [
        {"role": "assistant", "content": "Mix flour and water.\n\nThen: let it rise."}
    ]
    texts = ["For how long?", "Which flour is the best one?", "Why?"]
    assert json.loads(in_form(texts, found.form, found.schema)) == {
        "chips": [
            {"label": "For how long?", "message": "For how long?"},
            {"label": "Which flour is the…", "message": "Which flour is the best one?"},
        ]
    }


def test_a_schema_of_texts_is_filled_and_of_another_kind_is_not_looked_at():
    def read(schema, name="answer", model="suggestions-array"):
        wanted = {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
        return read_asked({"model": model, "messages": CONVERSATION, "response_format": wanted}, {})

    questions = {
        "properties": {"why": {"type": "string"}, "questions": {"type": "array", "items": {"type": "string"}}}
    }
    found = read(questions)
    assert json.loads(in_form(["a", "b"], found.form, found.schema)) == {"questions": ["a", "b"]}
    assert read(questions, model="big").form is None  # a task of another kind has a schema too
    for other in ({"type": "string"}, {"properties": {"title": {"type": "string"}}}, {"properties": 7}, None):
        found = read(other)
        assert json.loads(in_form(["a"], found.form, found.schema)) == ["a"]


def test_a_stream_says_the_same_in_events():
    events = b"".join(completion_events('["a"]', "m")).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == '["a"]'
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_message_is_the_suggestion_whatever_its_width_and_its_blanks():
    assert same_text("Ｗhat  is\u00a0this\n?") == same_text("What is this ?")
    assert same_text("What is this?") != same_text("What is that?")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(JSON, JSON, JSON, st.text(st.characters()))
def test_no_body_is_too_odd_to_be_read(role, content, stream, model):
    body = {"messages": [{"role": role, "content": content}, content], "stream": stream, "model": model}
    listed = {"type": "array", "items": {"type": "string", "maxLength": role}, "maxItems": content}
    schema = {"properties": {"other": role, "list": listed}}
    body["response_format"] = {"json_schema": {"name": role, "schema": schema}} if stream else stream
    found = read_asked(body, {"x-task": "follow_up_generation"})
    json.loads(in_form(["Why?"], found.form, found.schema))
    json.dumps(found.conversation, ensure_ascii=False).encode()
    assert found.form in ("follow_ups", "array")


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("<chat_history>\nUSER: a\n</chat_history> b", "USER: a"),
        ("<chat_history>a</chat_history> <chat_history>b</chat_history>", "b"),
        ("<chat_history>a <chat_history> b</chat_history>", "a <chat_history> b"),
        ("<chat_history> </chat_history>", ""),
        ("</chat_history> <chat_history>", None),
        ("<chat_history>", None),
        ("", None),
    ],
)
def test_the_history_is_what_the_last_pair_of_marks_holds(prompt, found):
    assert history(prompt) == found


def test_marks_without_end_cost_no_time():
    began = time.monotonic()
    read_asked({"messages": [{"role": "user", "content": "<chat_history>" * 18_000 + '"follow_ups"'}]}, {})
    for line in (
        "USER: a\nASSISTANT: b\n",
        "\n### ",
        "\nquestions:",
        "[ ",
        "Please predict three most likely a ",
        "JSON",
        "<think></think>",
        "[THINK]",
        " " * 99,
        '<details type="reasoning" ',
    ):
        asked(f"Human: a\nAssistant: b\n{line * (200_000 // len(line))}\nquestions:\n")
        asked(f"USER: a\nASSISTANT: b\n{line * (200_000 // len(line))}\nfollow_ups")
        as_messages([{"role": "assistant", "content": line * (200_000 // len(line))}])
    assert time.monotonic() - began < 20  # a regular expression took 142 s
