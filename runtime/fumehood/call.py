"""The path of one call. Everything that runs, runs through here; nothing may go around it.

`evidence.record` opens the record before any effect and closes it last, whatever happens in between: a refusal,
a failure of the box, a cancellation, a fault of ours. `sandbox.box` removes the box however it is left.
"""

from __future__ import annotations

from fumehood import evidence, execution, sandbox
from fumehood.admission import approval, policy, verify
from fumehood.execution import Work
from fumehood.model import Outcome, ToolCall
from fumehood.ports import Ports


async def run_call(call: ToolCall, work: Work, ports: Ports) -> Outcome:
    """Carry one call from request to closed record. Raises nothing but cancellation (after the record is closed)."""
    async with evidence.record(call, ports) as log:
        verified = await log.note(verify.check(call, ports.images))
        verdict = await log.note(policy.evaluate(verified, ports.owner_uid))
        grant = await log.note(approval.settle(verdict))
        plan = await log.note(sandbox.plan(grant))
        async with sandbox.box(plan, ports, log) as box:
            await box.bind(plan.binding)
            outcome = await execution.run(box, work, plan)
            outcome = await sandbox.settle(box, plan, outcome)
        log.conclude(outcome)
    return log.outcome
