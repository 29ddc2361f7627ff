"""Plain English for the tokenizer, written for this recipe: common words, so that other text is not all letters."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

SENTENCES = """
The first thing that you should know about this place is that it has always been open to the people who live around
it.
I would like to know what time the train leaves, because my brother is waiting for me and he does not like to wait.
There was nothing to do but to go home, so they went back the same way and talked about what had happened during the
day.
If the answer is not in the text, please say that you do not know it, and explain which information is missing.
The user asked for a list of all the files in the folder, and the program returned an error because the folder did not
exist.
We have been working on this problem for several years, and only now can we say that the result is good enough to be
used.
You can change the name, the date, the number and the address of your account at any time without any additional cost.
Could you please check whether my reservation has been confirmed, and tell me how much I have to pay in total?
Thank you for your help. I am sorry for the trouble, and I hope that everything will be better with the next order.
The company said that it would return the money within ten days, but the customer had not received anything after a
month.
A function takes some values, does something with them, and returns another value; the caller decides what to do next.
When a new message comes in, the service first looks for an earlier one that begins in the same way, and uses what it
has kept.
Most of the memory is used for things that nobody will ever ask about again, but it is hard to say which things these
are.
She was looking for a book that her mother had given to her when she was a child, but it was not where she had left
it.
The weather was very cold, and the water in the lake had turned into ice; the children were happy and did not want to
go in.
It is important to understand that both of these methods have the same effect, although they look quite different.
He could not believe what he had just heard, and asked the other man to say it again, more slowly and with fewer
words.
Please provide your first name, your last name, your date of birth, and the payment method that you would like to use.
The flight from the north was delayed by two hours, so that the passengers had to wait for another one in the evening.
Would you like me to cancel the whole order, or only one of the items? Yes, please cancel it and refund the full
amount.
Here is an example of how this works: the system reads the question, finds the right place, and then writes the
answer.
Many small parts together make one large thing, and each part must know only a little about the others to do its work.
This is not the end of the world, and there are always some ways to make it right again if we take enough time.
What do you think about that? I think we should try it, but only after we have made sure that it is safe for everyone.
They were three: the oldest was a doctor, the second was a teacher, and the third had never told anyone what she did.
Before you start, make sure that the power is off; then open the box, take out the old part, and put the new one in
its place.
On the other side of the street there is a small shop where they sell bread, milk, fruit, vegetables and all kinds of
tea.
He told us that the price of the house was too high, and that he would rather wait until the next year to buy one.
The test failed because the expected value was different from the actual value; see the report for more details.
It does not matter how long it takes, as long as the work is done well and the result can be trusted by others.
The current status of the request is available; the details are required before the next action can be completed.
In the beginning there were only a few of them, but every week more and more people came to see what was going on.
We need to update the record, create a new version, remove the old data, and send a message to the person in charge.
How many days are there between the first of March and the last of June, and which of these months has the most days?
Let me know if you need anything else. I will be here until six, and after that you can call me at any time.
From here you can see the sea, the mountains behind it, and on a clear day even the islands far away in the south.
Their question was simple, but the answer was not: it depends on where you are, when you ask, and what you want.
Those who have never seen it cannot imagine how beautiful it is, and those who have seen it cannot describe it.
To be able to compare two things, you have to measure both in the same way, at the same time and with the same care.
No one should have to choose between doing what is right and doing what is easy, but almost everyone does now and
then.
""".strip().splitlines()


def english(rng: Random) -> Iterator[str]:
    """Each sentence many times over in random order, so that its words weigh as much as those of the workloads."""
    for _ in range(30):
        yield from rng.sample(SENTENCES, len(SENTENCES))
