import pytest

from serve.errors import InvalidInput
from training.bitrate.qoe import LINEAR, PERCEPTUAL, Qoe


def test_named_definitions_are_the_published_ones():
    assert Qoe.of("linear") == LINEAR
    assert Qoe.of("perceptual") == PERCEPTUAL
    assert LINEAR.weights == (-4.3, -1.0, -1.0, 1.0)
    assert LINEAR.constant == 0
    assert PERCEPTUAL.weights == (-28.7959, 0.2980, -1.0610, 0.8469)
    assert PERCEPTUAL.constant == -2.6616
    assert (LINEAR.measure, PERCEPTUAL.measure) == ("mbps", "vmaf")


@pytest.mark.parametrize(("text", "measure"), [("-3,-1,-2,1.5", "mbps"), ("vmaf:-3,-1,-2,1.5", "vmaf")])
def test_user_gives_weights(text, measure):
    qoe = Qoe.of(text)
    assert (qoe.name, qoe.weights, qoe.measure) == (text, (-3.0, -1.0, -2.0, 1.5), measure)


@pytest.mark.parametrize(
    "text", ["", "best", "1,2,3", "-1,0,0,1,5", "-1,0,0,nan", "-1,0,0,inf", "psnr:-1,0,0,1", ":", "1,0,0,1", "-1,0,0,0"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidInput, match="qoe"):
        Qoe.of(text)
