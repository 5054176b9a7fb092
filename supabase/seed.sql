-- A first feed for `supabase start`: three accounts, six posts, two likes. A worker encodes the
-- posts. The likes are learned then.
insert into auth.users (id, email) values
  ('00000000-0000-4000-8000-000000000001', 'ada@example.com'),
  ('00000000-0000-4000-8000-000000000002', 'ben@example.com'),
  ('00000000-0000-4000-8000-000000000003', 'eve@example.com')
on conflict do nothing;

insert into public.profiles (user_id, handle, bio, interests) values
  ('00000000-0000-4000-8000-000000000001', 'ada', 'I sail and take photos.', '{sailing,photography}'),
  ('00000000-0000-4000-8000-000000000002', 'ben', 'Cook, baker, gardener.', '{cooking,gardening}'),
  ('00000000-0000-4000-8000-000000000003', 'eve', null, null)
on conflict do nothing;

with seeded as (
  insert into public.posts (author_id, content) values
    ('00000000-0000-4000-8000-000000000001', 'Sailing out at dawn, no wind, no sound.'),
    ('00000000-0000-4000-8000-000000000001', 'How to photograph boats against the light'),
    ('00000000-0000-4000-8000-000000000001', 'A week on the islands'),
    ('00000000-0000-4000-8000-000000000002', 'Sourdough without a scale'),
    ('00000000-0000-4000-8000-000000000002', 'Tomatoes on a balcony'),
    ('00000000-0000-4000-8000-000000000002', 'Soup for ten people')
  returning id, author_id
)

insert into public.engagement_events (user_id, post_id, event_type)
select '00000000-0000-4000-8000-000000000003', s.id, 'like'
from seeded as s
where s.author_id = '00000000-0000-4000-8000-000000000001'
order by s.id
limit 2;
