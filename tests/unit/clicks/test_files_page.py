"""The rows that docs/FILES.md shows are rows that the code takes."""

import json
import re
from pathlib import Path

from openrlhf_qs.clicks.preferences import SCHEMA, preference_problems
from openrlhf_qs.clicks.rows import FIELDS, checked_row
from openrlhf_qs.form.request import Request
from openrlhf_qs.form.response import parse_response

PAGE = (Path(__file__).parents[3] / "docs" / "FILES.md").read_text()
ROWS = {
    re.findall(r"`([^`]+)`", head)[0]: json.loads(row)
    for head, row in re.findall(r"^## (.*?)$.*?^```json\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
}


def test_the_log_row_is_a_good_one():
    row = ROWS["data/fusion.jsonl"]
    assert checked_row(json.dumps(row).encode())["clicks"] == [1, 1, 0] and row.keys() == FIELDS.keys()


def test_the_preferences_row_is_a_good_one_with_every_field():
    row = ROWS["data/preferences.jsonl"]
    assert preference_problems(row) == [] and row.keys() == SCHEMA.keys()


def test_the_prompt_carries_its_conversation_and_the_response_is_well_formed():
    prompt, response = ROWS["data/prompts.jsonl"], ROWS["fusion/responses.jsonl"]
    assert Request.of_label(prompt["label"]).conversation == prompt["prompt"][:-1]
    assert parse_response(response["response"]).well_formed
