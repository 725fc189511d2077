"""The path of one call. Everything that runs, runs through here; nothing may go around it.

`evidence.record` opens the record before any effect and closes it last, whatever happens in between: a refusal,
a failure of the box, a cancellation, a fault of ours. Gate, leases and box end in that order however they are left: the
way out is shut, the credentials are revoked, the box is removed.
"""

from __future__ import annotations

from functools import partial

from fumehood import credentials, egress, evidence, execution, sandbox
from fumehood.admission import approval, once, policy, verify
from fumehood.execution import Work
from fumehood.model import Outcome, ToolCall
from fumehood.ports import Ports


async def run_call(call: ToolCall, work: Work, ports: Ports) -> Outcome:
    """Carry one call from request to closed record. Raises nothing but cancellation (after the record is closed)."""
    recall = execution.recall_of(work)
    async with evidence.record(call, ports) as log:
        verified = await log.note(verify.check(call, ports.images, log.opened.pin))
        judge = partial(policy.evaluate, verified, booked=log.opened.booked, owner_uid=ports.owner_uid)
        verdict = await log.note(judge(log.policy, now_s=ports.clock.wall_s()))
        grant = await log.note(await approval.settle(verdict, judge, execution.requester_of(work), log, ports))
        fresh = await log.note(await once.claim(grant, recall, ports))
        plan = await log.note(sandbox.plan(fresh))
        async with (
            sandbox.box(plan, ports, log) as box,
            credentials.lease(plan, ports, log) as leases,
            egress.gate(plan, leases, box, ports) as gate,
        ):
            await box.bind(plan.binding, gate.supplies)
            outcome = await execution.run(box, work, plan)
            outcome = await sandbox.settle(box, plan, outcome)
        log.conclude(await once.keep(outcome, fresh, recall, ports))
    return log.outcome
