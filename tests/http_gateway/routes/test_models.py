"""/v1/models, /tokenize and /detokenize."""

from starlette.testclient import TestClient

from tests.support.http_gateways import HELLO, calling, error_of


def test_the_served_model_is_listed_and_described(http: TestClient) -> None:
    content = http.get("/v1/models").json()
    assert content["object"] == "list"
    (model,) = content["data"]
    assert (model["id"], model["object"], model["num_experts"]) == ("demo", "model", 8)
    assert http.get("/v1/models/demo").json() == model
    assert error_of(http.get("/v1/models/gpt")) == (404, "model", "model: 'gpt' is not served; the model is 'demo'")


def test_the_model_can_have_another_name() -> None:
    from tests.support.fake_server import serving

    with serving() as fake, calling(fake.target, served_model_name="org/name") as http:
        assert http.get("/v1/models/org/name").json()["id"] == "org/name"
        assert http.post("/tokenize", json={"prompt": "a", "model": "demo"}).status_code == 404


def test_texts_and_conversations_become_tokens(http: TestClient) -> None:
    content = http.post("/tokenize", json={"prompt": "a b", "return_token_strs": True}).json()
    assert content == {"count": 3, "max_model_len": 0, "tokens": [0, 1, 2], "token_strs": ["<s>", "a", "b"]}
    assert http.post("/tokenize", json={"prompt": "a b", "add_special_tokens": False}).json()["count"] == 2
    assert http.post("/tokenize", json={"messages": HELLO}).json()["count"] == 2


def test_tokens_become_texts(http: TestClient) -> None:
    assert http.post("/detokenize", json={"tokens": [1, 2]}).json() == {"prompt": "[1, 2] False"}


def test_neither_prompt_nor_messages_is_refused(http: TestClient) -> None:
    assert error_of(http.post("/tokenize", json={}))[:2] == (400, "prompt")
