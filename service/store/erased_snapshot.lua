#!lua flags=allow-oom
-- Erase a snapshot, and keep one that is on its way from being written.
--
-- KEYS[1]  the snapshot    ARGV[1]  for how long, ms

redis.call('SET', KEYS[1], '', 'PX', ARGV[1])
