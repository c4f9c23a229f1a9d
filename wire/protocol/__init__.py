"""Every message between routers, workers' leaders and their peers.

Directions: router -> worker: `Hello`, `Submit`, `Find`, `Attach`, `Abort`, `Pin`, `Unpin`, `Park`, `Drain`, `Move`.
Worker -> router: `WorkerInfo`, `StepOutputs`, `Found`, `Parked`. Decode worker -> prefill worker: `Hello`, `Pull`,
`CancelPull`. Prefill worker -> decode worker: `WorkerInfo`, `Header` (all of a snapshot is on its way), `PullRefused`,
`Beat`. A connection for one file: the router sends `Hello` and `SaveFile`, and the worker answers with `FilePart`s; or
the router sends `Hello`, `LoadFile` and `FilePart`s, and the worker answers with `FileKept`. The worker may answer
either with `FileRefused`.

The messages are plain data and know neither HTTP nor torch. `wire.codec` frames them.
"""

from wire.protocol.data import Data
from wire.protocol.file import FileKept, FilePart, FileRefused, LoadFile, SaveFile
from wire.protocol.kept import KeptEvent, Mark, Park, Parked, Pin, Unpin
from wire.protocol.output import Finish, SeqOutput, StepOutputs, Timings, TokenLogprob
from wire.protocol.request import Abort, Attach, Find, Found, Move, Prefix, Submit
from wire.protocol.sampling import Grammar, SamplingParams
from wire.protocol.transfer import CancelPull, Header, Pull, PullRefused
from wire.protocol.worker import Beat, Drain, Hello, Load, Miss, PeerRef, RankInfo, Role, Tier, WorkerInfo

Message = (
    Hello | Submit | Abort | StepOutputs | WorkerInfo | Pull | CancelPull | PullRefused | Header
    | Pin | Unpin | Park | Parked | Drain | Find | Found | Attach | Beat | Move
    | SaveFile | LoadFile | FilePart | FileKept | FileRefused
)  # fmt: skip

__all__ = [
    "Abort",
    "Attach",
    "Beat",
    "CancelPull",
    "Data",
    "Drain",
    "FileKept",
    "FilePart",
    "FileRefused",
    "Find",
    "Finish",
    "Found",
    "Grammar",
    "Header",
    "Hello",
    "KeptEvent",
    "Load",
    "LoadFile",
    "Mark",
    "Message",
    "Miss",
    "Move",
    "Park",
    "Parked",
    "PeerRef",
    "Pin",
    "Prefix",
    "Pull",
    "PullRefused",
    "RankInfo",
    "Role",
    "SamplingParams",
    "SaveFile",
    "SeqOutput",
    "StepOutputs",
    "Submit",
    "Tier",
    "Timings",
    "TokenLogprob",
    "Unpin",
    "WorkerInfo",
]
