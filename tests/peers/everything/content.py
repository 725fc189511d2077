"""What the conformance peer offers, as data in the protocol's own words: definitions, contents and schemas.

The names and texts are those that `@modelcontextprotocol/conformance` looks for; its scenarios are the specification.
"""

import json

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def resource(uri: str, words: str, kind: str = "text/plain") -> dict:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": kind, "text": words}}


IMAGE = {"type": "image", "data": PNG, "mimeType": "image/png"}
MIXED = json.dumps({"test": "data", "value": 123}, separators=(",", ":"))

# Tools whose whole behaviour is their answer.
ANSWERS = {
    "test_simple_text": [text("This is a simple text response for testing.")],
    "test_image_content": [IMAGE],
    "test_audio_content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}],
    "test_embedded_resource": [resource("test://embedded-resource", "This is an embedded resource content.")],
    "test_multiple_content_types": [
        text("Multiple content types test:"),
        IMAGE,
        resource("test://mixed-content-resource", MIXED, "application/json"),
    ],
    "test_logging_tool": [text("logged, to those who asked for it")],
    "test_header_parameter": [text("the header agreed with the body")],
    "json_schema_2020_12_tool": [text("the arguments fit")],
}

JSON_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


def _object(**properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties)}


INPUT_SCHEMAS = {
    "test_sampling": _object(prompt={"type": "string", "description": "What to ask the model"}),
    "test_elicitation": _object(message={"type": "string", "description": "What to show the user"}),
    "greet": _object(name={"type": "string"}),
    "slow_compute": {
        "type": "object",
        "properties": {"seconds": {"type": "number"}, "label": {"type": "string"}},
        "required": ["seconds"],
    },
    "confirm_delete": {"type": "object", "properties": {"filename": {"type": "string"}}},
    "test_header_parameter": _object(region={"type": "string", "x-mcp-header": "Region"}),
    "json_schema_2020_12_tool": JSON_SCHEMA,
}

# What the user is asked for by the tools of 2025-11-25.
USER_FORM = _object(
    username={"type": "string", "description": "User's response"},
    email={"type": "string", "description": "User's email address"},
)
DEFAULTS_FORM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "User name", "default": "John Doe"},
        "age": {"type": "integer", "description": "User age", "default": 30},
        "score": {"type": "number", "description": "User score", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "description": "Verification status", "default": True},
    },
    "required": [],
}
_TITLED = [{"const": f"value{n}", "title": f"{word} Option"} for n, word in enumerate(("First", "Second", "Third"), 1)]
ENUMS_FORM = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
        "titledSingle": {"type": "string", "oneOf": _TITLED},
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": ["option1", "option2", "option3"]}},
        "titledMulti": {"type": "array", "items": {"anyOf": _TITLED}},
    },
    "required": [],
}

STATIC = {
    "test://static-text": {"mimeType": "text/plain", "text": "This is the content of the static text resource."},
    "test://static-binary": {"mimeType": "image/png", "blob": PNG},
    "test://watched-resource": {"mimeType": "text/plain", "text": "Watched resource content"},
}
RESOURCES = [
    {"uri": uri, "name": uri.removeprefix("test://"), "description": f"The {uri[7:]}", "mimeType": found["mimeType"]}
    for uri, found in STATIC.items()
]
TEMPLATES = [
    {
        "uriTemplate": "test://template/{id}/data",
        "name": "template",
        "description": "Data of one id",
        "mimeType": "application/json",
    }
]


def template(uri: str) -> dict | None:
    """The content of `test://template/{id}/data`, or None for another URI."""
    head, _, rest = uri.partition("test://template/")
    wanted, _, tail = rest.partition("/")
    if head or not wanted or tail != "data":
        return None
    words = json.dumps({"id": wanted, "templateTest": True, "data": f"Data for ID: {wanted}"})
    return {"mimeType": "application/json", "text": words}


def _prompt(name: str, description: str, *arguments: str) -> dict:
    needed = [{"name": each, "description": f"The argument {each}", "required": True} for each in arguments]
    return {"name": name, "description": description, **({"arguments": needed} if needed else {})}


PROMPTS = [
    _prompt("test_simple_prompt", "A prompt without arguments"),
    _prompt("test_prompt_with_arguments", "A prompt with arguments", "arg1", "arg2"),
    _prompt("test_prompt_with_embedded_resource", "A prompt that holds a resource", "resourceUri"),
    _prompt("test_prompt_with_image", "A prompt that holds an image"),
    _prompt("test_input_required_result_prompt", "A prompt that asks the user first"),
]


def messages(name: str, arguments: dict) -> list[dict]:
    """The messages of a prompt that asks nothing."""
    contents = {
        "test_simple_prompt": lambda: [text("This is a simple prompt for testing.")],
        "test_prompt_with_arguments": lambda: [
            text(f"Prompt with arguments: arg1='{arguments['arg1']}', arg2='{arguments['arg2']}'")
        ],
        "test_prompt_with_embedded_resource": lambda: [
            resource(arguments["resourceUri"], "Embedded resource content for testing."),
            text("Please process the embedded resource above."),
        ],
        "test_prompt_with_image": lambda: [IMAGE, text("Please analyze the image above.")],
    }[name]
    return [{"role": "user", "content": each} for each in contents()]
