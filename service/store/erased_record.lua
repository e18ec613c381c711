#!lua flags=allow-oom
-- Erase a user's record, and write something even where it was gone before: an erasure is sent again
-- if its answer is lost, and WAIT counts from the last write.
--
-- KEYS[1]  the record

if redis.call('UNLINK', KEYS[1]) == 0 then
  redis.call('SET', KEYS[1], '')
  redis.call('UNLINK', KEYS[1])
end
