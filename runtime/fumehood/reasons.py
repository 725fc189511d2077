"""Every refusal, kill and failure code: one line, one meaning, one remedy.

Codes are part of the public interface (records, `--json`, MCP errors): never renamed, never reused.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """A code with its meaning and what to do next."""

    meaning: str
    remedy: str

    def __new__(cls, code: str, meaning: str = "", remedy: str = "") -> Self:
        """Make a member whose value is the code alone; the defaults are for `Reason(code)`, which looks one up."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        member.remedy = remedy
        return member

    # Refused: nothing ran.
    BAD_REQUEST = "bad_request", "the request is malformed", "Correct the named field and try again."
    CONFIG_INVALID = "config_invalid", "the configuration is not valid", "Correct the named line."
    CONFIG_UNSAFE = "config_unsafe", "the file could have been written by someone else", "Fix its owner and mode, or move it."
    PROFILE_INVALID = "profile_invalid", "the profile is not valid", "Run `fumehood profile lint` on it."
    PROFILE_UNKNOWN = "profile_unknown", "there is no such profile", "`fumehood profile list` names them all."
    SECCOMP_FLOOR = "seccomp_floor", "the system call policy allows what no box may do", "Remove the named call from the seccomp file."
    IMAGE_MISSING = "image_missing", "the image is not in the store", "Build it: `fumehood image build NAME`."
    IMAGE_UNSAFE = "image_unsafe", "the image could reach outside its root", "Rebuild it without the named path."
    IMAGE_RECIPE_INVALID = "image_recipe_invalid", "the recipe or its lock is not valid", "Correct the named field."
    IMAGE_VANISHED = "image_vanished", "a locked version is no longer to be had", "`fumehood image lock --upgrade NAME` takes today's."
    IMAGE_BUILD_FAILED = "image_build_failed", "a step of building the image failed", "Correct what the step names, and build again."
    IMAGE_IN_USE = "image_in_use", "boxes run from this image", "Wait until they have ended."
    TOOL_NOT_ALLOWED = "tool_not_allowed", "the profile does not allow this tool", "Add it to `tools.allow` if that is right."
    NOT_ALLOWED = "not_allowed", "the profile does not allow this", "Add it to the named list of the profile if that is right."
    TOOL_UNKNOWN = "tool_unknown", "the server has no such tool", "List the tools and use one of their names."
    NOT_KNOWN = "not_known", "the server has no such prompt or resource", "List them and use one of their names."
    TOOL_UNREVIEWED = "tool_unreviewed", "nobody has accepted this tool's definition yet", "Have the operator look at it: `fumehood pins diff`, then `fumehood pins accept`."
    TOOL_CHANGED = "tool_changed", "the tool's definition is another than the one that was accepted", "Have the operator look at it: `fumehood pins diff`, then `fumehood pins accept`."
    TOOL_REJECTED = "tool_rejected", "the operator has rejected this tool's definition", "Use another tool."
    PIN_UNKNOWN = "pin_unknown", "there is no such pin", "`fumehood pins list` lists them."
    SCHEMA_UNUSABLE = "schema_unusable", "the tool's input schema cannot be judged safely", "Report it to the server's author."
    ARGUMENTS_INVALID = "arguments_invalid", "the arguments do not fit the tool's schema", "Correct the named argument."
    FUNCTION_UNFIT = "function_unfit", "the function cannot be handed over to a box", "Change what is named, or run it yourself."
    RUNTIME_CLOSED = "runtime_closed", "no runtime is open that could carry this call", "Open one first: `async with Runtime.open(...)`."
    REPLAYED = "replayed", "this very request was taken before", "Sign it anew, with a nonce of its own."
    NONCES_FULL = "nonces_full", "too many requests of this sender's are remembered", "Try again in a minute, with fewer requests a second."
    PROOF_EXPIRED = "proof_expired", "the request's signature is out of date", "Sign it anew; check the clocks of both hosts."
    PROOF_INVALID = "proof_invalid", "the request's signature cannot be accepted", "Sign exactly what is sent, with a key that `fumehood senders list` shows."
    CLOCK_WENT_BACK = "clock_went_back", "this host's clock is behind where it was, so what was used before may be forgotten", "Set the clock right, or wait until it is past that time."
    PROOF_MISSING = "proof_missing", "requests must be signed here", "Sign them: `fumehood sign-proxy` does it for a client that cannot."
    CHALLENGE_STALE = "challenge_stale", "the request was signed for another session, or too long ago", "Sign it anew, with the challenge of this answer."
    SENDER_REVOKED = "sender_revoked", "this sender's key was revoked", "`fumehood senders add` takes another key."
    SENDER_UNKNOWN = "sender_unknown", "there is no such sender", "`fumehood senders list` names them all."
    SENDER_DENIED = "sender_denied", "this sender may not call anything", "Run as the owner of the state folder, or have the operator permit it by policy."
    POLICY_DENIED = "policy_denied", "the operator's policy does not permit this call", "Do something else; asking again, or for the same by another way, is decided alike."
    BUDGET_EXCEEDED = "budget_exceeded", "a budget of the operator's policy is used up", "Wait until the named time; asking earlier, or by another way, is refused alike."
    POLICY_FAILED = "policy_failed", "a policy could not be evaluated, so nothing is permitted", "Have the operator correct it; `fumehood policy check` and `fumehood policy explain` help."
    POLICY_INVALID = "policy_invalid", "the policies are not valid", "Correct what `fumehood policy check` names."
    APPROVAL_UNAVAILABLE = "approval_unavailable", "an approval is needed and nobody can give it", "Change the rule, or name approvers in `approvals` of fumehood.yaml."
    APPROVAL_PENDING = "approval_pending", "the call waits for an approval, and nothing has run", "Send the same request again: it goes on waiting for the same approval."
    APPROVAL_DENIED = "approval_denied", "an approver said no", "Do not ask again, nor by another way: the answer stays. Ask the approver."
    APPROVAL_EXPIRED = "approval_expired", "nobody approved the call in time", "Ask again when an approver is there."
    APPROVAL_WITHDRAWN = "approval_withdrawn", "whoever asked for the call took the request back", "Send it again if it is still wanted."
    APPROVALS_FULL = "approvals_full", "as many calls wait for approval as may", "Wait until some are decided: `fumehood approvals list`."
    APPROVAL_UNKNOWN = "approval_unknown", "there is no such approval to decide", "`fumehood approvals list` names those that wait."
    APPROVAL_CHANGED = "approval_changed", "what waits is not what was looked at", "Look at it again: `fumehood approvals show`."
    APPROVER_UNFIT = "approver_unfit", "this approver's word does not count for this call", "Let another approver decide."
    ANSWER_UNFIT = "answer_unfit", "the signed answer cannot be accepted", "Sign one for what waits now: `fumehood approvals sign`."
    UNENFORCEABLE = "unenforceable", "this host cannot enforce what the profile asks", "`fumehood doctor` says what is missing."
    ENGINE_UNAVAILABLE = "engine_unavailable", "no engine that can make this box answers", "`fumehood doctor` says which engines work and why."
    RISK_NOT_ACCEPTED = "risk_not_accepted", "the engine's runtime has a known hole", "Upgrade it, or name the risk in `accept_risk`."
    WORKSPACE_UNREADABLE = "workspace_unreadable", "the workspace directory cannot be opened", "Name a directory that you may read."
    WORKSPACE_NOT_ALLOWED = "workspace_not_allowed", "this directory may not be given to a box", "Use one of yours, below an allowed root."
    WORKSPACE_MISSING = "workspace_missing", "the profile needs a workspace and none was given", "Pass --workspace DIR."
    WORKSPACE_BUSY = "workspace_busy", "another call held the workspace for the whole wall time", "Try again when it has ended."
    TASK_UNKNOWN = "task_unknown", "there is no such task", "`fumehood tasks` lists them."
    STATE_NEWER = "state_newer", "the state folder was written by a newer fumehood", "Upgrade fumehood, or use another FUMEHOOD_STATE."
    STATE_UNAVAILABLE = "state_unavailable", "the state folder cannot be used", "Check that it is yours and that the disk has room."
    LEDGER_UNAVAILABLE = "ledger_unavailable", "the record could not be written, so nothing ran", "Check the state folder's disk and owner."
    EXTRA_MISSING = "extra_missing", "an optional package is not installed", "Install the named extra."
    SCOPE_REFUSED = "scope_refused", "the call asks for more of a credential than it may have", "Widen `scope` in the profile, or `allow` of the credential, if that is right."
    LEASE_FAILED = "lease_failed", "a credential could not be issued or revoked", "The detail has the provider's answer; check its part of fumehood.yaml."
    LEASE_UNKNOWN = "lease_unknown", "there is no such lease", "`fumehood leases` lists them."
    WITNESS_UNAVAILABLE = "witness_unavailable", "a required witness could not be told what the ledger says", "Make it reachable, or drop `required` in fumehood.yaml."
    RECEIPT_NONE = "receipt_none", "the call has no receipt", "A call has one when it is closed; `fumehood task ID` shows its record."
    EVIDENCE_EDITED = "evidence_edited", "the ledger is not what was written", "`fumehood audit verify` says where; keep the files."
    STOPPED = "stopped", "an operator has stopped everything", "`fumehood start` lets calls begin again."
    KEY_REUSED = "key_reused", "this idempotency key was used for another request", "Use a new key, such as a UUID, for each request."
    KEYS_FULL = "keys_full", "this sender has as many idempotency keys as are remembered", "Wait until old ones are forgotten, or send the request without one."
    IN_PROGRESS = "in_progress", "an earlier request with this key is still running", "Ask again later, with the same key."
    RESULT_GONE = "result_gone", "this request ran before, and its result is no longer kept", "Look at the named task before you use a new key to have it done again."
    BUSY = "busy", "no box is free on this host", "Try again later, or raise `boxes` in fumehood.yaml."

    # Killed: we ended it.
    WALL = "wall", "the call ran into its wall-clock limit", "Raise `limits.wall` if the work needs longer."
    IDLE = "idle", "the call was silent for longer than its idle limit", "Raise `limits.idle`, or report progress."
    PARKED = "parked", "the call waited for an answer longer than its box is kept", "Answer sooner, or raise `ask.wait`."
    SESSION_ENDED = "session_ended", "the session that this call belongs to is over", "Call again without the handle: a new session begins."
    MEMORY = "memory", "the call ran out of memory", "Raise `limits.memory` if the work needs more."
    OUTPUT = "output", "the tool wrote 16 times its output limit", "Write less, or raise `limits.output`."
    CANCELLED = "cancelled", "the caller cancelled the call", "Nothing to do."
    OPERATOR = "operator", "an operator stopped the call", "Ask the operator."
    READBACK_MISMATCH = "readback_mismatch", "the kernel did not apply what the plan says", "Run `fumehood doctor`; report it with the record."

    # Failed: it ran, or should have run, and went wrong.
    EXIT_NONZERO = "exit_nonzero", "the tool ended with a non-zero status", "Read its stderr."
    SIGNALLED = "signalled", "the tool was ended by a signal", "Read its stderr."
    NOT_EXECUTABLE = "not_executable", "the command could not be executed in the image", "Check the command and the image."
    BOX_FAILED = "box_failed", "the box could not be made", "Run `fumehood doctor`; the record has the engine's words."
    BOX_DIED = "box_died", "the box went away in mid-call", "Try again; the record has what is known."
    BROKER_DIED = "broker_died", "the privileged process went away", "Start again; the next start sweeps."
    SERVER_DIED = "server_died", "the MCP server ended before it answered", "Read its stderr in the record."
    SERVER_GARBAGE = "server_garbage", "the MCP server wrote something that is not the protocol", "Read its stderr in the record."
    SERVER_ERROR = "server_error", "the MCP server answered with an error", "Read the error."
    UPSTREAM_UNREACHABLE = "upstream_unreachable", "the remote server cannot be reached", "Check `upstream.url`, and that the server is up."
    UPSTREAM_NOT_ALLOWED = "upstream_not_allowed", "the remote server's name leads to an address that it may not have", "Name its network in `upstream.addresses` if that is right."
    UPSTREAM_UNTRUSTED = "upstream_untrusted", "the remote server's certificate is not to be trusted", "Check `upstream.url`; trust a private authority in the configuration."
    UPSTREAM_UNAUTHORIZED = "upstream_unauthorized", "the remote server does not accept the credential", "Check `upstream.credential` and what it may do there."
    UPSTREAM_BUSY = "upstream_busy", "the remote server wants no more requests now", "Try again later."
    UPSTREAM_REFUSED = "upstream_refused", "the remote server does not take MCP requests at this URL", "Check `upstream.url`."
    UPSTREAM_FAILED = "upstream_failed", "the remote server failed", "Try again later; its operator knows more."
    UPSTREAM_LIMIT = "upstream_limit", "the call used up what its profile allows of the network", "Ask for less, or raise `network.limits`."
    INPUT_REQUIRED = "input_required", "the MCP server asks something in mid-call that it may not, or that nobody can answer", "Allow it with `ask` in the profile, or give all it needs in the arguments."
    NOT_QUIET = "not_quiet", "a server that stands by does more than wait", "Leave `pool` out of the profile: it is started for each call then."
    RESULT_TOO_LARGE = "result_too_large", "the result is over `limits.result`", "Ask for less, or raise `limits.result`."
    RESULT_NOT_KEPT = "result_not_kept", "the result could not be kept", "Make room with `fumehood tasks prune`, or ask for less."
    RESULT_INVALID = "result_invalid", "what the function returned does not fit its return type", "Correct the function, or its annotation."
    RESULT_UNFIT = "result_unfit", "the server's result does not fit the tool's output schema", "Report it to the server's author."
    FUNCTION_RAISED = "function_raised", "the function raised an exception", "Read the exception."
    FUNCTION_DIED = "function_died", "the function's process ended before it answered", "Read its stderr."
    FUNCTION_UNLOADABLE = "function_unloadable", "the function could not be imported in its image", "Import only what the image has, or build an image that has more."
    COMMIT_REFUSED = "commit_refused", "the workspace's changes were not safe to apply", "The record names the file; `fumehood diff TASK` shows the rest."
    COMMIT_FAILED = "commit_failed", "the workspace's changes could not be applied", "`fumehood commit TASK` tries again."
    INTERNAL = "internal", "a fault of fumehood's own", "Report it with the record."

    # Repeated: it had run before.
    REPEATED = "repeated", "an earlier request with this key was carried out, and its answer is this one's", "Use a new key to have it done again."

    # Lost: the runtime died.
    RUNTIME_DIED = "runtime_died", "the runtime died in mid-call; what the tool did is unknown", "Check before you repeat it."
