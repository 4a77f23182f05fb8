"""torch.compile: encoding and decoding of every family are one graph, and a compiled model gives the same tokens."""

import copy
import pickle

import pytest
import tiny
import torch

import zoo

NOISE = "makes a generator from the seed of each item, which no graph holds"
SEVERAL_GRAPHS_DECODE = {
    **dict.fromkeys(("flextok", "layton", "seed_tokenizer", "selftok", "semanticist", "snac"), NOISE),
    "gaussian_token": "the number of Gaussians that reach a tile depends on the image",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_encode_and_decode_are_one_graph_each(name):
    model = tiny.build(name)
    x = model.pad(tiny.signal(model)).clone()
    tokens = model.encode(tiny.signal(model))
    codes, options = model.codes(tokens), {"seed": 0} if "seed" in model.decode_options else {}

    def encode(x):
        return model.encode_levels(x)[0]

    def decode(codes):
        return model.decode_codes(codes, tokens, **options)

    # an LSTM is wrapped as one operator, which torch leaves to a switch
    with torch.no_grad(), model._evaluating(), torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(encode, fullgraph=True, backend="eager")
        assert all(torch.equal(a, b) for a, b in zip(encode(x), compiled(x), strict=True))
        torch._dynamo.reset()
        if name in SEVERAL_GRAPHS_DECODE:
            return
        compiled = torch.compile(decode, fullgraph=True, backend="eager")
        torch.testing.assert_close(decode(codes), compiled(codes), atol=1e-4, rtol=1e-4)
        torch._dynamo.reset()


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_tokens():
    model = zoo.create_model("compact_f8.photos", pretrained=True)
    fast = zoo.create_model("compact_f8.photos", pretrained=True, compile=True)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    tokens = model.encode(x)
    assert (fast.encode(x).indices == tokens.indices).float().mean() > 0.999  # sums in another order
    torch.testing.assert_close(fast.decode(tokens), model.decode(tokens), atol=1e-4, rtol=1e-4)
    assert fast.source == model.source


def test_copies_are_not_compiled():
    model = zoo.create_model("compact_f8.photos", pretrained=True, compile=True)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert "latent" not in vars(other)
        assert other.latent.__self__ is other


def test_projectors_are_not_compiled():
    with pytest.raises(ValueError, match="expected a tokenizer, got lincir"):
        zoo.create_model("lincir", compile=True)
