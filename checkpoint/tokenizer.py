"""The tokenizer of a Hugging Face folder, with its chat template, which is a program and is run
by chat_template.py.

    load_tokenizer("demo/model").encode("3 + 4")
"""
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import normalizers, pre_tokenizers

from checkpoint import chat_template
from storage.files import MOST_JSON, InputError, read_file, read_json, require

MOST_TOKENIZER = 2 ** 28  # bytes of a tokenizer.json
LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


class Tokenizer:
    """Text to token ids and back, with the folder's own chat template, where it `.has_template`:
    `.chat(messages)` gives the ids of a conversation that waits for its answer. `.stop_ids` end it.
    """

    def __init__(self, folder):
        self.folder, self.special = Path(folder), {}
        file, side = self.folder / "tokenizer.json", self.folder / "tokenizer_config.json"
        require(not self.folder.is_file(), f"{folder}: a file; --model names the folder it is in")
        require(self.folder.is_dir(), f"{folder}: no such folder. A model of a hub is downloaded "
                 "first: hf download OWNER/NAME --local-dir DIR")
        require(file.exists(), f"{file}: no such file; only the tokenizer.json format is read")
        data, settings = read_file(file, MOST_TOKENIZER), read_json(side) if side.exists() else {}
        try:
            self.fast = FastTokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{file}: {error}") from error
        if (settings.get("legacy") is False and self.fast.pre_tokenizer is None
                and str(self.fast.normalizer) == str(LLAMA2)):
            self.fast.normalizer = None  # a word after a special token gets no blank before it
            self.fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        for key in ("bos_token", "eos_token", "pad_token"):
            token = settings.get(key)  # text, or an object with its content
            token = token.get("content") if isinstance(token, dict) else token
            require(isinstance(token, str | None), f"{side}: {key} must be text, got {token!r}")
            if token is not None:
                self.special[key] = token
        self.template = _template(self.folder, settings.get("chat_template"))
        self.has_template = self.template is not None
        self.stop_ids = _stop_ids(self.folder, self.fast, self.special)

    def encode(self, text, add_special_tokens=True):
        try:
            return self.fast.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeError) as error:  # a lone surrogate is no text
            raise InputError(f"text cannot be encoded: {error}") from error

    def decode(self, ids):
        """Text of the ids; special tokens and ids beyond the vocabulary are left out."""
        return self.fast.decode([i for i in ids if i < self.fast.get_vocab_size()])

    def render(self, messages, add_generation_prompt=True):
        """The text of a conversation; it waits for an answer if add_generation_prompt."""
        require(self.has_template, f"{self.folder}: no chat template; use encode")
        text, problem = chat_template.render(self.template, {
            "messages": messages, "add_generation_prompt": add_generation_prompt,
            "enable_thinking": False, **self.special})
        require(not problem, f"{self.folder}: chat template: {problem}")
        return text

    def chat(self, messages):
        return self.encode(self.render(messages), add_special_tokens=False)  # it prints BOS itself


load_tokenizer = Tokenizer  # of a folder, as load_model


def _template(folder, template):
    file, side = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.exists():  # overrides tokenizer_config.json
        try:
            return read_file(file, MOST_JSON).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 ({error})") from error
    if isinstance(template, list):
        require(all(isinstance(one, dict) and {"name", "template"} <= one.keys() for one in
                     template), f"{side}: chat_template lists what has no name or no template")
        named = sorted(template, key=lambda one: one["name"] != "default")
        template = named[0]["template"] if named else None
    require(isinstance(template, str | None), f"{side}: chat_template must be text")
    return template


def _stop_ids(folder, fast, special):
    """Ids that end an answer: generation_config.json's, else config.json's; and eos_token."""
    for file in (folder / "generation_config.json", folder / "config.json"):
        found = read_json(file).get("eos_token_id") if file.exists() else None
        ids = found if isinstance(found, list) else [found]
        require(all(type(i) in (int, type(None)) for i in ids),
                 f"{file}: eos_token_id must be a number or a list, got {found!r}")
        if found is not None:
            break
    return tuple(sorted({*ids, fast.token_to_id(special.get("eos_token", ""))} - {None}))
