"""Every setting of Stillhouse, from environment variables that begin with STILLHOUSE_.

Both sides read the same settings. What is left unset is derived from the data folder, so that
`stillhouse serve --data DIR` needs nothing else: SQLite, local files and a private Valkey socket.
"""

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

KIB, MIB, GIB = 2**10, 2**20, 2**30


class Settings(BaseSettings):
    """All settings; times are in seconds and sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="STILLHOUSE_", frozen=True, extra="ignore")

    data_dir: Path = Field(Path("stillhouse-data"), description="Folder of the database, files and logs.")
    database_url: SecretStr | None = Field(None, description="SQLAlchemy URL; default: SQLite in the data folder.")
    broker_url: SecretStr | None = Field(None, description="Redis or Valkey URL; default: an embedded Valkey.")
    storage_url: str | None = Field(None, description="file:// URL of the files; default: in the data folder.")

    lease_seconds: float = Field(30.0, gt=0, description="A worker silent for this long loses its job.")
    heartbeat_seconds: float = Field(5.0, gt=0, description="How often a worker renews its lease.")
    sweep_seconds: float = Field(5.0, gt=0, description="How often lost jobs and messages are looked for.")
    checkpoint_seconds: float = Field(30.0, ge=0, description="Least wall-clock time between two checkpoints.")
    max_attempts: int = Field(3, ge=1, description="A job that loses its worker this often fails.")
    drain_seconds: float = Field(60.0, gt=0, description="How long a stopping worker may take to hand back.")

    max_request_bytes: int = Field(MIB, gt=0, description="Largest JSON body.")
    max_upload_bytes: int = Field(64 * GIB, gt=0, description="Largest uploaded file.")
    upload_expiry_seconds: float = Field(86400.0, gt=0, description="An unused upload is removed after this.")
    retention_seconds: float | None = Field(
        None, gt=0, description="An ended job's log lines and metrics go after this; unset: with the job."
    )
    checkpoint_retention_seconds: float = Field(
        7 * 86400.0, gt=0, description="How long a failed or cancelled job can be tried again from its checkpoint."
    )
    idempotency_seconds: float = Field(7 * 86400.0, gt=0, description="How long a request may be sent again.")
    cache_bytes: int = Field(64 * GIB, ge=0, description="Inputs kept in canonical form; the least used go first.")
    min_free_bytes: int = Field(GIB, ge=0, description="Below this much free disk the service is not ready.")
    poll_seconds: float = Field(0.2, gt=0, description="How often long polls and event streams look for news.")
    max_wait_seconds: float = Field(60.0, gt=0, description="Longest wait of a long poll.")

    reader_seconds: float = Field(600.0, gt=0, description="CPU time that reading one upload may take.")
    reader_memory_bytes: int = Field(8 * GIB, gt=0, description="Address space that reading one upload may take.")
    max_dataset_bytes: int = Field(256 * GIB, gt=0, description="Largest dataset once decoded.")

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    num_threads: int = Field(0, ge=0, description="CPU threads of a job; 0 means all cores.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @cached_property
    def database(self) -> str:
        """The database's URL."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir.absolute() / 'stillhouse.db'}"

    @cached_property
    def storage(self) -> str:
        """The URL of the files."""
        return self.storage_url or f"file://{self.data_dir.absolute() / 'files'}"

    @cached_property
    def broker(self) -> str:
        """The broker's URL."""
        if self.broker_url is not None:
            return self.broker_url.get_secret_value()
        return f"redis+socket://{self.data_dir.absolute() / 'run' / 'valkey.sock'}"

    @cached_property
    def cache_dir(self) -> Path:
        """Where workers keep inputs in canonical form, by hash; safe to delete while nothing runs."""
        return self.data_dir / "cache"

    @cached_property
    def jobs_dir(self) -> Path:
        """One folder for each running job."""
        return self.data_dir / "jobs"
