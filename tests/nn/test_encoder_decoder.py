import pytest
import torch

from mmm4rec.nn.encoder_decoder import EncoderDecoder
from mmm4rec.nn.transformer import EPS

SIZE, INNER, HEADS = 8, 12, 2


def copy_attention(own, attention, norm):
    theirs = own.query, own.key_value
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([linear.weight for linear in theirs]))
        attention.in_proj_bias.copy_(torch.cat([linear.bias for linear in theirs]))
    attention.out_proj.load_state_dict(own.out.state_dict())
    norm.load_state_dict(own.norm.state_dict())


def copy_feed_forward(own, layer, norm):
    layer.linear1.load_state_dict(own.inner.state_dict())
    layer.linear2.load_state_dict(own.out.state_dict())
    norm.load_state_dict(own.norm.state_dict())


@pytest.mark.parametrize("layers", [1, 2])
def test_it_is_torchs_transformer(layers):
    torch.manual_seed(0)
    own = EncoderDecoder(SIZE, INNER, layers, HEADS, 0.5).eval()
    for parameter in own.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    theirs = torch.nn.Transformer(
        SIZE, HEADS, layers, layers, INNER, activation="gelu", layer_norm_eps=EPS, batch_first=True
    ).eval()
    for i in range(layers):
        encoder, decoder = theirs.encoder.layers[i], theirs.decoder.layers[i]
        copy_attention(own.attention[i], encoder.self_attn, encoder.norm1)
        copy_feed_forward(own.feed_forward[i], encoder, encoder.norm2)
        copy_attention(own.decoder[i].own, decoder.self_attn, decoder.norm1)
        copy_attention(own.decoder[i].other, decoder.multihead_attn, decoder.norm2)
        copy_feed_forward(own.decoder[i].feed_forward, decoder, decoder.norm3)
    theirs.encoder.norm.load_state_dict(own.encoder_norm.state_dict())
    theirs.decoder.norm.load_state_dict(own.decoder_norm.state_dict())

    tokens, x = torch.randn(3, 5, SIZE), torch.randn(3, 4, SIZE)
    known = torch.rand(3, 5) < 0.6
    known[:, 2] = True
    lengths = torch.tensor([4, 1, 2])
    padded = torch.arange(4) >= lengths[:, None]
    result = theirs(tokens, x, src_key_padding_mask=~known, tgt_key_padding_mask=padded, memory_key_padding_mask=~known)
    memory = own.encode(tokens, known)
    got = own.decode_last(x, lengths, memory, known)
    torch.testing.assert_close(got, result[torch.arange(3), lengths - 1], rtol=1e-4, atol=1e-5)
