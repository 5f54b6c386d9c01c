"""What a build wrote, read back."""


def samples_of(output):
    """Captions by key of a build's shards, in their order."""
    from vilg.data.sources.shards import ShardsConfig, ShardStream

    stream = ShardStream(ShardsConfig(path=str(output)))
    return {stream[number].key.rpartition("/")[2]: stream[number].captions for number in range(len(stream))}


def drops_of(output):
    """(key, rule, text, whether the sample is gone) of a build's table of drops."""
    from pyarrow import parquet

    rows = parquet.read_table(output / "dropped.parquet").to_pylist()
    return sorted((row["key"], row["rule"], row["text"] or "", row["sample"]) for row in rows)
