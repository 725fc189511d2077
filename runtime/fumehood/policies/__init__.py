"""What operators permit, in Cedar: the policies, what they are told of a call, what they say. Nothing here decides a call alone."""
