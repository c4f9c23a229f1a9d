"""Takes a rank's weights from the same rank of a worker that serves them."""

import socket
from contextlib import ExitStack

import torch
from torch import Tensor

from workers.transfer.channel import LinkBroken, ReceiveChannel
from workers.transfer.control import Control
from workers.transfer.device import own_stream
from workers.transfer.lending import PATIENCE_S
from workers.transfer.messages import WantWeights, WeightsHead
from workers.transfer.negotiation import Identity, accept_channel
from workers.transfer.payload import pieces

_CONNECT_S = 5.0
_HANDSHAKE_S = 15


class Borrowing:
    """A link to the lender, used and closed by the thread that made it."""

    def __init__(self, me: Identity, host: str, port: int, identity: str) -> None:
        """Connects and asks for the weights whose id is `identity`; LinkBroken if the lender has others."""
        self._device = me.device
        self._channel: ReceiveChannel | None = None
        self._stream = ExitStack()
        try:
            self._control = Control(socket.create_connection((host, port), timeout=_CONNECT_S))
        except OSError as error:
            raise LinkBroken(f"{host}:{port} can't be reached: {error}") from error
        try:
            self._control.patience(_HANDSHAKE_S)
            self._control.meet(me.secret, me.tls, calling=True)
            self._stream.enter_context(own_stream(me.device))
            self._channel = accept_channel(me, self._control)
            self._channel.patience_s = PATIENCE_S
            self._control.patience(PATIENCE_S)
            self._control.send(WantWeights(identity))
            head = self._control.receive()
            if not isinstance(head, WeightsHead):
                raise LinkBroken(f"{type(head).__name__} does not come from a lender")
            self.plan, self.total = head.plan, head.total
            catalogue = torch.empty(head.catalogue, dtype=torch.uint8)
            self.fill(catalogue)
            self.catalogue = catalogue.numpy().tobytes()
        except BaseException:
            self.close()
            raise

    def fill(self, out: Tensor) -> None:
        """Receive the next tensor's bytes, of any dtype, strides and device, into `out`; LinkBroken."""
        channel = self._channel
        assert channel is not None
        direct = out.is_contiguous() and out.device.type == channel.device.type
        room = out if direct else torch.empty(out.shape, dtype=out.dtype, device=channel.device)
        for piece in pieces(channel, room):
            channel.receive(piece)
        if not direct:
            out.copy_(room)

    def close(self) -> None:
        """End the link; on a GPU, after all received tensors are in their place."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._stream.close()
        if self._channel is not None:
            self._channel.close()
        self._control.release()
