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
NAMES = {f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
LISTS = ("additional_special_tokens", "extra_special_tokens")  # of tokens; the second also {name: }
NAMED = (*LISTS, "model_specific_special_tokens")  # where a folder gives tokens names of its own
CLASS_TOKENS = {  # what these classes of transformers have where a folder names no token
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")}


class Tokenizer:
    """Text to token ids and back, with the folder's own chat template if it `.has_template`:
    `.chat(messages, begin)` gives the ids of a conversation that waits for its answer, or for the
    rest of one that is begun. `.stop_ids` end it.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        require(not self.folder.is_file(), f"{folder}: a file; --model names the folder it is in")
        require(self.folder.is_dir(), f"{folder}: no such folder. A model of a hub is downloaded "
                "first: hf download OWNER/NAME --local-dir DIR")
        settings = _read_if_there(self.folder / "tokenizer_config.json")
        self.fast = _fast_tokenizer(self.folder, settings)
        self.special = _special_tokens(self.folder, settings)
        _mark_special(self.fast, self.special)
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
        values = {  # chat_template.py says why each of them is there
            **self.special, "messages": [_without_nulls(message) for message in messages],
            "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None,
            "enable_thinking": False}
        text, problem = chat_template.render(self.template, values)
        require(not problem, f"{self.folder}: chat template: {problem}")
        return text

    def chat(self, messages, begin=""):
        text = self.render(messages) + begin
        return self.encode(text, add_special_tokens=False)  # the template prints BOS itself


load_tokenizer = Tokenizer  # of a folder, as load_model


def _read_if_there(file):
    return read_json(file) if file.exists() else {}


def _fast_tokenizer(folder, settings):
    """The tokenizer of tokenizer.json. It encodes all of a text, and every time alike: truncation,
    padding and BPE dropout, which training leaves in that file, are switched off."""
    file = folder / "tokenizer.json"
    require(file.exists(), f"{file}: no such file; only the tokenizer.json format is read")
    try:
        fast = FastTokenizer.from_buffer(read_file(file, MOST_TOKENIZER))
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{file}: {error}") from error
    fast.no_truncation()
    fast.no_padding()
    if getattr(fast.model, "dropout", None) is not None:
        fast.model.dropout = None
    fast.encode_special_tokens = settings.get("split_special_tokens") is True
    if (settings.get("legacy") is False and fast.pre_tokenizer is None
            and str(fast.normalizer) == str(LLAMA2)):
        # transformers puts no blank before a word after a special token
        fast.normalizer = None
        fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return fast


def _special_tokens(folder, settings):
    """{name: text} of the special tokens, as transformers hands them to a chat template; under
    additional_special_tokens a list of texts."""
    side = folder / "tokenizer_config.json"
    class_name = str(settings.get("tokenizer_class")).removesuffix("Fast")
    named = CLASS_TOKENS.get(class_name, {}) | settings
    if "added_tokens_decoder" not in settings:  # which newer folders have in its place
        named |= _read_if_there(folder / "special_tokens_map.json")
    for key in NAMED:
        if isinstance(named.get(key), dict):
            named |= named[key]
    special = {}
    for key, token in named.items():
        text = _text_of(token)
        if key in NAMES and token is not None:
            require(text is not None, f"{side}: {key} must be text, got {token!r}")
        if key.endswith("_token") and text is not None:
            special[key] = text
    listed = next((named[key] for key in LISTS if isinstance(named.get(key), list)), None)
    if listed is not None:
        texts = [_text_of(token) for token in listed]
        require(None not in texts, f"{side}: {LISTS[0]} must be texts, got {listed!r}")
        special[LISTS[0]] = texts
    return special


def _without_nulls(message):
    return {key: value for key, value in message.items() if value is not None}


def _mark_special(fast, special):
    """Keeps each special token whole in a text, also one that tokenizer.json has as a mere word;
    what the vocabulary lacks stays out, since the model has no row for it."""
    texts = [text for text in special.values() if isinstance(text, str)] + special.get(LISTS[0], [])
    marked = {token.content for token in fast.get_added_tokens_decoder().values()}
    for text in texts:
        if text not in marked and fast.token_to_id(text) is not None:
            fast.add_special_tokens([text])


def _text_of(token):
    """The text of a token, which may be spelt as an object with its content; else None."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _template(folder, template):
    file, side = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.exists():  # overrides tokenizer_config.json
        try:
            return read_file(file, MOST_JSON).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 ({error})") from error
    if isinstance(template, list):
        for entry in template:
            require(isinstance(entry, dict) and {"name", "template"} <= entry.keys(),
                    f"{side}: chat_template lists what has no name or no template")
        # the default template, or the first if none has this name
        named = sorted(template, key=lambda entry: entry["name"] != "default")
        template = named[0]["template"] if named else None
    require(isinstance(template, str | None), f"{side}: chat_template must be text")
    return template


def _stop_ids(folder, fast, special):
    """Ids that end an answer: generation_config.json's, else config.json's; and eos_token."""
    ids = set()
    for file in (folder / "generation_config.json", folder / "config.json"):
        named = _read_if_there(file).get("eos_token_id")
        if named is not None:
            ids = set(_id_list(file, named))
            break
    if "eos_token" in special:
        ids.add(fast.token_to_id(special["eos_token"]))
    return tuple(sorted(ids - {None}))


def _id_list(file, named):
    ids = named if isinstance(named, list) else [named]
    for token_id in ids:
        require(token_id is None or type(token_id) is int,
                f"{file}: eos_token_id must be a number or a list, got {named!r}")
    return ids
