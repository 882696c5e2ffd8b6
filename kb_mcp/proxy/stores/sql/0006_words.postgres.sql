-- When the first whole look at Stripe's list began that did not show the object of an operation since
-- its last send: an operator's void needs two, a minute apart.
ALTER TABLE operations ADD COLUMN void_look_at BIGINT;
