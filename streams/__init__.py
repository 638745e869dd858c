"""What a plugin imports: subject tables, policies, the handler's context, and the errors that are verdicts."""

from models.errors import Reject, Retry
from state.tables import Table
from streams.context import Context
from streams.policy import Policy
from streams.subjects import SubjectTable
from streams.ticks import Tick

__all__ = ["Context", "Policy", "Reject", "Retry", "SubjectTable", "Table", "Tick"]
